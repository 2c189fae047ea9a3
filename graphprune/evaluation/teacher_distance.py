"""Distances of a pruned model's outputs from those of the dense one, which trainings minimize."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.errors import CalibrationError

TINY = 1e-12  # keeps a division by the size of zeros finite
ROWS = 256  # of logits at a time


def divergence(scores: Tensor, reference: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the reference, the mean over rows; both are logits, shape (rows, classes).

    Raises:
        CalibrationError: if there are other classes than in the reference.
    """
    if scores.shape != reference.shape:
        raise CalibrationError(
            f"the model predicts logits of shape {tuple(scores.shape)}, the teacher {tuple(reference.shape)}: "
            "both need the same classes; train with labels (aim='labels')"
        )
    value: Tensor = _Divergence.apply(scores, reference)  # type: ignore[no-untyped-call]
    return value


class _Divergence(torch.autograd.Function):
    """Divergence and its gradient, some rows at a time, since logits of a large vocabulary are large."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, reference: Tensor) -> Tensor:
        gradient = torch.empty_like(scores) if ctx.needs_input_grad[0] else None
        parts = list[Tensor]()
        for start in range(0, len(scores), ROWS):
            part = slice(start, start + ROWS)
            got, expected = scores[part].log_softmax(1), reference[part].log_softmax(1)
            weights = expected.exp()
            if gradient is not None:
                torch.sub(got.exp(), weights, out=gradient[part]).div_(len(scores))
            parts.append(weights.mul_(expected.sub_(got)).sum())
        ctx.save_for_backward(gradient)
        return torch.stack(parts).sum() / len(scores)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * above[0], None


def output_distance(output: Any, reference: Any) -> Tensor:
    """Squared distance of all outputs of floating point, relative to the size of the reference's: their mean.

    Raises:
        CalibrationError: if the outputs have other shapes.
    """
    got, expected = ([leaf for leaf in pytree.tree_leaves(of) if _is_number(leaf)] for of in (output, reference))
    shapes = [[tuple(leaf.shape) for leaf in of] for of in (got, expected)]
    if not got or shapes[0] != shapes[1]:
        raise CalibrationError(f"the model returns outputs of shapes {shapes[0]}, the teacher {shapes[1]}")
    return relative_distance(got, expected)


def relative_distance(got: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """Squared distance of tensors, each relative to the size of the expected one: their mean."""
    parts = [
        (one.float() - other.float()).square().sum() / other.float().square().sum().clamp(min=TINY)
        for one, other in zip(got, expected, strict=True)
    ]
    return torch.stack(parts).mean()


def _is_number(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
