"""Comparison of the outputs of two models."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from graphprune.errors import ExportError, VerificationError
from graphprune.execution.output_comparison import RTOL, Discrepancy, difference
from graphprune.execution.rounding_check import require_rounding
from graphprune.ir.program import Program
from graphprune.ir.weights import DerivedWeights

TOLERANCE = 1e-3  # of the typical value
_FEWEST = 4  # magnitudes of one kind: there is no double precision to tell a single small value from rounding
_INFINITE = Discrepancy(float("inf"), float("inf"), float("inf"))


@dataclass(frozen=True)
class Rounded(DerivedWeights):
    """Weights of `base`, those in `names` rounded to `dtype` as in a file."""

    dtype: torch.dtype
    names: Collection[str]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        if name not in self.names or not tensor.is_floating_point():
            return tensor
        wide = tensor.dtype
        tensor = tensor.to(self.dtype)  # frees the wide tensor before the next one is allocated
        return tensor.to(wide)


def rounded(program: Program, dtype: torch.dtype, stored: Collection[str]) -> Program:
    """The program with the weights `stored` rounded to `dtype`, as a saved model has them.

    Tensors that are not stored, such as rotary frequencies, are recomputed in full precision when a model is loaded.
    """
    return replace(program, weights=Rounded(program.weights, dtype, stored))


def error(output: Tensor, reference: Tensor, rounding: Tensor | None = None) -> Discrepancy:
    """Discrepancy of `output` from `reference`, of one shape; infinite if a number is finite on one side alone.

    Differences up to the greatest `rounding` of entries of the same magnitude do not count.
    """
    try:
        return difference(reference, output, rounding=rounding, fewest=_FEWEST)
    except VerificationError:
        return _INFINITE


def numbers(outputs: object) -> list[Tensor]:
    """Floating-point tensors among the outputs of a model."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def compare(
    subject: str, outputs: Sequence[Tensor], reference: Sequence[Tensor], tolerance: float = TOLERANCE
) -> Discrepancy:
    """The largest error among pairs of outputs; `subject` names the model in messages.

    Raises:
        ExportError: if outputs differ by more than `tolerance` of their typical value, or none is finite.
    """
    if not reference or len(outputs) < len(reference):
        raise ExportError(f"{subject} gives {len(outputs)} floating-point outputs, expected {len(reference)}")
    errors = [_pair(subject, i, a, b) for i, (a, b) in enumerate(zip(outputs, reference, strict=False))]
    worst = max(errors, key=lambda e: e.relative)
    if not worst.relative <= tolerance:
        raise ExportError(
            f"{subject} does not agree with the pruned program: outputs differ by {worst.relative:.1e} relative to "
            f"the typical value (tolerance {tolerance:.0e}); nothing was saved. Try another destination, such as free"
        )
    return worst


def compare_closely(
    subject: str, outputs: Sequence[Tensor], reference: Sequence[Tensor], again: Callable[[], Sequence[Tensor]]
) -> Discrepancy:
    """The largest error among pairs of outputs of two models in torch; `again` runs the first one to estimate rounding.

    Raises:
        ExportError: if outputs differ by more than rounding, or none is finite.
    """
    worst = compare(subject, outputs, reference)
    if worst.relative <= RTOL:
        return worst
    try:
        require_rounding(
            [*reference], [*outputs[: len(reference)]], f"{subject} and the pruned program", again, RTOL, inf
        )
    except VerificationError as fault:
        raise ExportError(f"{fault}. Try another destination, such as free") from fault
    return worst


def _pair(subject: str, index: int, output: Tensor, reference: Tensor) -> Discrepancy:
    if output.shape != reference.shape:
        shapes = f"{tuple(output.shape)}, expected {tuple(reference.shape)}"
        raise ExportError(f"{subject} gives output {index} the shape {shapes}; nothing was saved")
    if reference.numel() and not bool(torch.isfinite(reference).any()):
        raise ExportError(f"the pruned program gives only NaN or infinity in output {index}; nothing was saved")
    return error(output, reference)
