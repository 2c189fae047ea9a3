"""Soft pruning (arXiv:1808.06866): indices that a cut would remove are set to zero, and may recover by training."""

import torch

from graphprune.errors import TrainingError
from graphprune.training.coupled_weights import CoupledWeights


@torch.no_grad()
def soften(weights: CoupledWeights) -> float:
    """Set the columns that contract the indices to remove to zero; return the share of all indices.

    The rows that produce an index remain, so that its columns have gradients.

    Raises:
        TrainingError: if no linear layer contracts them.
    """
    marked = [group for group in weights.groups if group.name in weights.removed]
    places = [(g.name, p) for g in marked for p in g.places if "contracted" in p.role]
    known = {(g.name, at.parameter, at.dims[-1]): at for g in marked for at in weights.positions[g.name]}
    chosen = [(name, at) for name, p in places if (at := known.get((name, p.parameter, p.dim)))]
    if not chosen:
        raise TrainingError(
            "no linear layer contracts what would be removed, so that it cannot be set to zero; omit soft"
        )
    for name, positions in chosen:
        weight = weights.weight(positions.parameter)
        weight.mul_(positions.factors(1 - weights.removed[name], weight))
    total = sum(group.size for group in weights.groups)
    return sum(float(mask.mean(0).sum()) for mask in weights.removed.values()) / max(total, 1)
