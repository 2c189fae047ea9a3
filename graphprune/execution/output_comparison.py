"""Comparison of outputs in which no entry hides another: each is judged by the typical magnitude of its like.

Entries that are equal on both sides, such as -inf, NaN or another mark of a masked position, agree and set no scale.
The others fall into clusters of magnitudes with wide gaps between them, so that a masked logit of -1e9 plus a score is
judged by its own rounding. An entry's scale is the median of its cluster, or the smallest median of its cluster within
a slice of the tensor that holds it, and at least the entry itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.errors import VerificationError

RTOL = 1e-4  # of the typical magnitude, in float32
DOUBLE = 1e-7  # in float64, where a small difference is no rounding
GAP = 7  # powers of two without any magnitude between two clusters
FEWEST = 2  # entries of a cluster
IN_SLICE, IN_COLUMN = 4, 8  # entries of a slice that its median needs, and its median distance from the center
SAMPLE = 1 << 12  # entries of a slice of which the median is computed
CHUNK = 1 << 22  # entries that are compared at once, to bound the memory


@dataclass(frozen=True)
class Verification:
    """Result of a comparison: the greatest difference, relative to the typical magnitude of such entries.

    `sizes` are the sizes of the inputs of each case, and `refused_sizes` those that the program does not accept.
    `blind` names outputs that show nothing in any case, because they are constant or hold no finite number, and
    `unseen` counts retained indices that are zero in all cases, as behind an inactive ReLU.
    """

    max_error: float
    tolerance: float
    cases: int
    sizes: tuple[str, ...] = ()
    refused_sizes: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Discrepancy:
    """Greatest difference of two tensors: absolute, relative to the typical magnitude of such entries, and to their
    typical distance from the center of their slice, which a large constant part of an output does not hide."""

    absolute: float
    relative: float
    spread: float


def compare(
    reference: Any, output: Any, what: str, tolerance: float | None = None, *, weights: torch.dtype | None = None
) -> Verification:
    """Compare two outputs, leaf by leaf; the default tolerance is wider than that of a proof in double precision.

    It is that of the outputs' type, or that of the type of the `weights`, if they are given and coarser: outputs may
    have been computed in it.

    Raises:
        VerificationError: if shapes or numbers disagree, or a number is finite on one side alone.
    """
    pairs = paired(reference, output, what)
    least = _unresolved(torch.empty(0, dtype=weights)) if weights is not None else 0.0
    allowed = [tolerance or max(_unresolved(a), least) for a, _ in pairs]
    errors = [difference(a, b, f"{what}, output {i}").relative for i, (a, b) in enumerate(pairs)]
    if not pairs or not max(errors) <= max(allowed):
        raise VerificationError(
            f"{what}: they differ by {max(errors, default=float('inf')):.2e} of the typical value, allowed is "
            f"{max(allowed, default=RTOL):.0e}; nothing was saved"
        )
    blind = tuple(f"output {i}" for i, (a, _) in enumerate(pairs) if not is_informative(a))
    return Verification(max(errors), max(allowed), 1, blind=blind)


def paired(reference: Any, output: Any, what: str) -> list[tuple[Tensor, Tensor]]:
    """Leaves of both sides that are tensors or numbers.

    Raises:
        VerificationError: if one side has more.
    """
    sides = numbers(reference), numbers(output)
    if len(sides[0]) != len(sides[1]):
        raise VerificationError(f"{what}: they have {len(sides[0])} and {len(sides[1])} outputs; nothing was saved")
    return list(zip(*sides, strict=True))


def numbers(output: Any) -> list[Tensor]:
    """Leaves that are tensors or numbers."""
    leaves = pytree.tree_leaves(output)
    return [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, Tensor | int | float | complex)]


def rounding_of(reference: Tensor) -> float:
    """Tolerance for rounding in this type; integers count as computed in float32."""
    if not reference.is_floating_point() or reference.dtype == torch.float32:
        return RTOL
    return DOUBLE if reference.dtype == torch.float64 else 16 * torch.finfo(reference.dtype).eps


def _unresolved(reference: Tensor) -> float:
    """Tolerance where no wider type tells rounding from other differences."""
    return min(10 * rounding_of(reference), max(rounding_of(reference), 0.25))


def is_informative(reference: Tensor) -> bool:
    """Whether a tensor has entries that could differ: finite numbers that are not all the same, or a single one.

    A single zero and an empty tensor show nothing.
    """
    plain = _plain(reference, torch.float64).flatten()
    finite = plain[plain.isfinite()]
    if finite.numel() < 2:
        return bool(finite.any())
    return bool((finite != finite[0]).any())


def difference(
    reference: Tensor,
    output: Tensor,
    what: str = "the output",
    rounding: Tensor | None = None,
    fewest: int = FEWEST,
) -> Discrepancy:
    """Greatest difference of two tensors of one shape; integers differ by 1 or not at all.

    Differences up to the greatest `rounding` of an entry's cluster do not count. Clusters of less than `fewest`
    entries join the next one.

    Raises:
        VerificationError: if the shapes disagree, or a number is finite on one side alone.
    """
    if reference.shape != output.shape:
        raise VerificationError(
            f"{what}: shapes are {tuple(reference.shape)} and {tuple(output.shape)}; nothing was saved"
        )
    sides = (reference, output) if rounding is None else (reference, output, rounding)
    whole = not any(side.is_floating_point() or side.is_complex() for side in sides[:2])
    kind = torch.float32 if all(_is_single(side) for side in sides) else torch.float64
    parts = [_part(what, fewest, *(_plain(side, kind) for side in part)) for part in _chunks(sides)]
    absolute, *relative = (max((part[i] for part in parts), default=0.0) for i in range(3))
    return Discrepancy(absolute, *([float(absolute > 0)] * 2 if whole else relative))


def _part(what: str, fewest: int, a: Tensor, b: Tensor, rounding: Tensor | None = None) -> tuple[float, float, float]:
    unequal = (a != b) & ~(a.isnan() & b.isnan())
    if not bool(unequal.any()):
        return 0.0, 0.0, 0.0
    if not bool((a.isfinite() & b.isfinite() | ~unequal).all()):
        raise VerificationError(
            f"{what}: it holds numbers that are not finite where the other side has others (see that those of the "
            "model are; a file of its weights may be damaged); nothing was saved"
        )
    apart, sizes, relative, spread = (a - b).abs(), torch.maximum(a.abs(), b.abs()), 0.0, 0.0
    for inside in clusters(sizes, unequal, fewest):
        floor = 0.0 if rounding is None else float(rounding[inside].nan_to_num(0.0, 0.0).max())
        beyond = (apart - floor).clamp(min=0)
        if not bool(((beyond > 0) & inside).any()):
            continue
        relative = max(relative, _relative(beyond, sizes, inside, _slices(a)))
        spread = max(spread, _relative_to_spread(beyond, a, inside))
    return float(apart.where(unequal, 0).max()), relative, spread


def _is_single(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def _plain(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """The numbers in another type; those of a complex tensor have real and imaginary parts side by side."""
    tensor = tensor.detach().cpu()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj()).flatten(-2) if tensor.dim() else torch.view_as_real(tensor)
    return tensor.to(kind)


def _chunks(sides: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, or consecutive rows of them if they are large."""
    if sides[0].numel() <= CHUNK or sides[0].dim() < 2 or any(side.layout is not torch.strided for side in sides):
        yield sides
        return
    rows = max(1, CHUNK // sides[0].shape[-1])
    yield from zip(*(torch.split(side.flatten(0, -2), rows) for side in sides), strict=True)


def clusters(sizes: Tensor, counted: Tensor, fewest: int) -> Iterator[Tensor]:
    """Mask of each cluster of the `counted` entries, whose magnitudes are `sizes`."""
    exponents = sizes.frexp().exponent
    starts = _cluster_starts(exponents[counted], fewest)
    for start, end in pairwise([*starts, int(exponents.max()) + 1]):
        yield counted & (exponents >= start) & (exponents < end)


def _cluster_starts(exponents: Tensor, fewest: int) -> list[int]:
    """Lowest exponent of each cluster, ascending."""
    lowest = int(exponents.min())
    counts = torch.bincount((exponents - lowest).long())
    levels = counts.nonzero().flatten().tolist()
    starts, members = [levels[0]], 0
    for before, level in pairwise(levels):
        members += int(counts[before])
        if level - before > GAP and members >= fewest:
            starts.append(level)
            members = 0
    members += int(counts[levels[-1]])
    if len(starts) > 1 and members < fewest:
        del starts[-1]
    return [lowest + start for start in starts]


def _relative(apart: Tensor, sizes: Tensor, inside: Tensor, slices: list[list[int]]) -> float:
    """Greatest difference inside a cluster, relative to the smallest median size of the slices, or to its own size."""
    counted = sizes.where(inside, torch.nan)
    scale = _median(sizes, inside)
    for dims in slices:
        enough = inside.sum(dims, keepdim=True) >= IN_SLICE
        scale = torch.minimum(scale, _medians(counted, dims).where(enough, torch.inf).nan_to_num(torch.inf, torch.inf))
    scales = torch.maximum(scale, sizes).clamp(min=torch.finfo(sizes.dtype).tiny)
    return float((apart / scales).where(inside, 0).max())


def _relative_to_spread(apart: Tensor, values: Tensor, inside: Tensor) -> float:
    """Greatest difference inside a cluster, relative to the median distance from the center of all, or of a column."""
    if int(inside.sum()) < IN_COLUMN:
        return 0.0
    counted = values.where(inside, torch.nan)
    center = _median(values, inside)
    error = _relative(apart, (values - center).abs(), inside, [])
    columns = list(range(values.dim() - 1))
    if not columns:
        return error
    enough = inside.sum(columns, keepdim=True) >= IN_COLUMN
    centers = _medians(counted, columns)
    distances = (values - centers.where(enough & ~centers.isnan(), center)).abs()
    return max(error, _relative(apart, distances, inside, [columns]))


def _median(values: Tensor, inside: Tensor) -> Tensor:
    """Median of the values inside a mask, of many of them some."""
    every = slice(None, None, 1 + values.numel() // SAMPLE)
    some = values.flatten()[every][inside.flatten()[every]]
    return some.median() if len(some) else values[inside].median()


def _medians(values: Tensor, dims: list[int]) -> Tensor:
    """Medians over some dimensions, which remain with size 1; NaN are not counted, and of many values some are."""
    rest = [d for d in range(values.dim()) if d not in dims]
    shape = [1 if d in dims else values.shape[d] for d in range(values.dim())]
    slices = values.permute(*rest, *dims).flatten(len(rest)) if dims else values[..., None]
    return slices[..., :: 1 + slices.shape[-1] // SAMPLE].nanmedian(-1).values.view(shape)


def _slices(values: Tensor) -> list[list[int]]:
    """Dimensions of each kind of slice: that at an index of a dimension, and the vectors along the last one."""
    every = range(values.dim())
    kinds = [[d for d in every if d != kept] for kept in every if values.shape[kept] > 1]
    return [*kinds, [values.dim() - 1]] if values.dim() > 2 else kinds if values.dim() == 2 else []
