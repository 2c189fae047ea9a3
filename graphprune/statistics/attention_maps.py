"""Attention probabilities of a graph, and the divergence between heads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from graphprune.axes.algebra import Axis, Prime, primes, product, resolve
from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Dims
from graphprune.axes.rule_helpers import argument
from graphprune.display.progress import progress
from graphprune.execution.segments import Constants, run, split
from graphprune.ir.program import Program
from graphprune.statistics.collector import Calibration

aten = torch.ops.aten
FUSED = aten.scaled_dot_product_attention.default
SOFTMAX = (aten.softmax.int, aten._softmax.default)
PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.einsum.default)
CARRIED = 6  # maximum number of operators between a softmax and its product: dropout, casts, views
BATCHES, QUERIES = 4, 64  # maximum numbers in a comparison

_known: WeakKeyDictionary[fx.Graph, tuple[Calibration, dict[str, "AttentionHeads"]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class AttentionHeads:
    """Heads of one attention: their axis, and the Jensen-Shannon divergence of the probabilities of each two heads.

    The divergence is a mean over queries, in nats, shape (axis.size, axis.size).
    """

    axis: Axis
    divergence: Tensor


def attention_heads(program: Program) -> Mapping[str, AttentionHeads]:
    """Heads of every attention by its node, measured once on the first batches of the program's calibration."""
    calibration = program.fact(Calibration)
    known = _known.get(program.graph)
    if known is None or known[0] is not calibration:
        known = _known[program.graph] = calibration, _measured(program, calibration)
    return known[1]


def _measured(program: Program, calibration: Calibration) -> dict[str, AttentionHeads]:
    heads = {node: _head_dims(program, node) for node in _attentions(program)}
    heads = {node: dims for node, dims in heads.items() if dims}
    (whole,) = split(program, frozenset())
    watched = {n.name for node in heads for n in (node, *node.all_input_nodes)}
    totals: dict[fx.Node, Tensor] = {}
    batches, made = calibration.batches[:BATCHES], Constants(program)
    with progress("comparing heads", len(batches)) as step, torch.no_grad():
        for leaves in batches:
            _, seen = run(whole, program, program.weights, known := made.of(leaves), None, watched)
            for node, dims in heads.items():
                distances = jensen_shannon_divergence(_flat(attention_probabilities(node, {**known, **seen}), dims))
                totals[node] = totals.get(node, torch.zeros(())) + distances / len(batches)
            step()
    axes = {node: product([resolve(_lead(program, node)[i]) for i in dims]) for node, dims in heads.items()}
    return {node.name: AttentionHeads(axes[node], total) for node, total in totals.items()}


def _attentions(program: Program) -> Iterator[fx.Node]:
    """Fused attention, and softmaxes along the last dimension that feed a product."""
    for node in program.graph.nodes:
        along = argument(node, 1, "dim") if node.target in SOFTMAX else None
        last = along in (-1, node.meta["val"].dim() - 1) if along is not None else False
        if node.target is FUSED or (last and _feeds_product(node, CARRIED)):
            yield node


def _feeds_product(node: fx.Node, steps: int) -> bool:
    return any(user.target in PRODUCTS or (steps > 0 and _feeds_product(user, steps - 1)) for user in node.users)


def _lead(program: Program, node: fx.Node) -> Dims:
    """Axes of the probabilities except the last two, which are queries and keys."""
    dims = program.fact(Dependencies).values[node.name]
    assert isinstance(dims, tuple)  # of one tensor
    return dims[:-2]


def _head_dims(program: Program, node: fx.Node) -> list[int]:
    """Dimensions of the probabilities that come from parameters; others are samples."""
    learned: set[Prime] = {
        p for dims in program.fact(Dependencies).tensors.values() for axis in dims for p in primes(axis)
    }
    return [i for i, axis in enumerate(_lead(program, node)) if learned & set(primes(axis))]


def attention_probabilities(node: fx.Node, seen: Mapping[str, Any]) -> Tensor:
    """Attention probabilities of a node, shape (..., queries, keys), from the values of the node and its inputs."""
    if node.target is not FUSED:
        softmax: Tensor = seen[node.name]
        return softmax
    query, key = (seen[n.name] for n in node.args[:2] if isinstance(n, fx.Node))
    if argument(node, 7, "enable_gqa", False):
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scale = argument(node, 6, "scale")
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    mask = argument(node, 3, "attn_mask")
    if mask is not None:
        bias = seen[mask.name]
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    if argument(node, 5, "is_causal", False):
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    probabilities: Tensor = scores.softmax(-1).nan_to_num()
    return probabilities


def _flat(probabilities: Tensor, dims: list[int]) -> Tensor:
    """Probabilities as (samples, heads, keys); up to `QUERIES` evenly spaced queries are samples."""
    queries = torch.linspace(0, probabilities.shape[-2] - 1, min(QUERIES, probabilities.shape[-2])).long()
    heads = probabilities[..., queries, :].movedim(dims, list(range(len(dims))))
    return heads.flatten(0, len(dims) - 1).flatten(1, -2).transpose(0, 1).double()


def jensen_shannon_divergence(distributions: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence of each two heads in nats, shape (heads, heads).

    `distributions` has shape (samples, heads, keys): JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2.
    """

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp(min=1e-300).log()).sum(-1)

    own = entropy(distributions)
    rows = []
    for i in range(distributions.shape[1]):
        middle = (distributions + distributions[:, i : i + 1]) / 2
        rows.append((entropy(middle) - (own + own[:, i : i + 1]) / 2).mean(0))
    return torch.stack(rows).clamp(min=0)
