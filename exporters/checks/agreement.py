"""Do two models give the same numbers?"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from graphprune.errors import ExportError
from graphprune.ir.program import Program
from graphprune.ir.weights import DerivedWeights

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Error:
    """The largest difference of two tensors, as it is and relative to the largest reference value."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class Rounded(DerivedWeights):
    """The weights of `base`, those of which the names are given as they are after being stored as `dtype`."""

    dtype: torch.dtype
    names: Collection[str]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        if name not in self.names or not tensor.is_floating_point():
            return tensor
        wide = tensor.dtype
        tensor = tensor.to(self.dtype)  # let go of the wide one before there is another
        return tensor.to(wide)


def rounded(program: Program, dtype: torch.dtype, stored: Collection[str]) -> Program:
    """The program as a file that holds the weights `stored` in `dtype`: at best a saved model agrees with that.

    What is not stored, such as the frequencies of rotary embeddings, is computed anew in full precision.
    """
    return replace(program, weights=Rounded(program.weights, dtype, stored))


def error(found: Tensor, reference: Tensor) -> Error:
    """How far `found` is from `reference`; both of any floating type and the same shape."""
    if not reference.numel():
        return Error(0.0, 0.0)
    absolute = float((found.double() - reference.double()).abs().max())
    largest = float(reference.double().abs().max())
    return Error(absolute, absolute / largest if largest else absolute)


def numbers(outputs: object) -> list[Tensor]:
    """The floating-point tensors among the outputs of a model."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def compare(what: str, found: Sequence[Tensor], reference: Sequence[Tensor], tolerance: float = TOLERANCE) -> Error:
    """The largest difference between outputs, pairwise.

    Raises:
        ExportError: if they differ by more than `tolerance` relative to the largest value, or are not finite.
    """
    if not reference or len(found) < len(reference):
        raise ExportError(f"{what} gives {len(found)} floating-point outputs, expected {len(reference)}")
    errors = [_pair(what, i, a, b) for i, (a, b) in enumerate(zip(found, reference, strict=False))]
    worst = max(errors, key=lambda e: e.relative)
    if not worst.relative <= tolerance:
        raise ExportError(
            f"{what} does not agree with the pruned program: outputs differ by {worst.relative:.1e} relative to the "
            f"largest value, allowed are {tolerance:.0e}; nothing was saved. Try another destination, such as free"
        )
    return worst


def _pair(what: str, index: int, found: Tensor, reference: Tensor) -> Error:
    if found.shape != reference.shape:
        shapes = f"{tuple(found.shape)}, expected {tuple(reference.shape)}"
        raise ExportError(f"{what} gives output {index} the shape {shapes}; nothing was saved")
    if not bool(torch.isfinite(reference).all()):
        raise ExportError(f"the pruned program gives NaN or infinity in output {index}; nothing was saved")
    return error(found, reference)
