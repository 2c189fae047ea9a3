"""Numerical equivalence: two programs that must agree are run on fresh random inputs.

Programs run one after the other, with the weights of at most one segment in memory (see `interpreter`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphprune.errors import GraphpruneError, VerificationError, because
from graphprune.execution import float64, interpreter
from graphprune.execution.module_state import seeded
from graphprune.ir.program import Inputs, Program
from graphprune.ir.weights import KeepByName, Masked

RTOL = 1e-4  # of the largest reference value, in float32
STORED = 1e-5  # in float64 with weights that are stored in float32
DOUBLE = 1e-7  # in float64, where a small difference is no rounding


@dataclass(frozen=True)
class Verification:
    """Result of a comparison: the greatest difference, relative to the greatest reference value."""

    max_error: float
    tolerance: float
    cases: int


class _ApartError(VerificationError):
    """Shapes agree and all numbers are finite, but some differ too much."""


def compare(reference: Any, output: Any, what: str, tolerance: float | None = None) -> Verification:
    """Compare two outputs, leaf by leaf.

    Raises:
        VerificationError: if shapes or numbers disagree, or a number is not finite.
    """
    pairs = list(zip(_numbers(reference), _numbers(output), strict=True))
    worst, allowed = 0.0, 0.0
    for i, (a, b) in enumerate(pairs):
        allowed = max(allowed, tolerance or _tolerance(a))
        worst = max(worst, _error(a, b, f"{what}, output {i}"))
    if not pairs or worst > allowed:
        raise _ApartError(
            f"{what}: they differ by {worst:.2e} of the largest value, allowed is {allowed:.0e}; nothing was saved"
        )
    return Verification(worst, allowed, 1)


def mask_program(program: Program, keep: KeepByName) -> Program:
    """Program with zeros outside the indices in `keep`, in the original shapes.

    The direction of a weight norm is not masked where its magnitude is, because the direction of zero would be 0 / 0.
    """
    directions = [direction_of(node) for node in program.graph.nodes]
    spared = {(program.name(str(v.target)), dim) for v, dim in filter(None, directions)}
    zeros = {n: {dim: i for dim, i in dims.items() if (n, dim) not in spared} for n, dims in keep.items()}
    return replace(program, weights=Masked(program.weights, zeros))


def direction_of(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Direction parameter of a weight norm, and the dimension of its magnitudes."""
    if node.target is not torch.ops.aten._weight_norm.default:
        return None
    v, g = node.args[:2]
    if not isinstance(v, fx.Node) or not isinstance(g, fx.Node) or v.op != "get_attr" or g.op != "get_attr":
        return None
    dim: Any = node.args[2] if len(node.args) > 2 else 0
    return (v, dim) if dim >= 0 and len(v.users) == 1 else None  # -1: a single magnitude


def verify_cut(program: Program, small: Program, keep: KeepByName, seeds: tuple[int, ...] = (0, 1)) -> Verification:
    """Check that `small` has the outputs of the masked `program`, also on inputs of other sizes than the traced ones.

    Where large values cancel, rounding in single precision can exceed the tolerance; then both must agree in double.

    Raises:
        VerificationError: if it does not.
    """
    reference = mask_program(program, keep)
    cases, expected = _run(reference, seeds)
    with _running():
        outputs = interpreter.run(small, cases, seeds)
    try:
        return _agreement(expected, outputs)
    except _ApartError as fault:
        if not all(map(_is_single, _numbers(expected))):
            raise
        return _agreement_in_double((reference, small), cases, seeds, fault)


def _is_single(leaf: Tensor) -> bool:
    """Whether the type is one whose rounding double precision removes."""
    return leaf.dtype in float64.WIDER or not (leaf.is_floating_point() or leaf.is_complex())


def _agreement(expected: Sequence[Any], outputs: Sequence[Any], tolerance: float | None = None) -> Verification:
    cases = [compare(a, b, "masked and cut program", tolerance) for a, b in zip(expected, outputs, strict=True)]
    return Verification(max(v.max_error for v in cases), max(v.tolerance for v in cases), len(cases))


def _agreement_in_double(
    programs: tuple[Program, Program], cases: Sequence[Inputs], seeds: Sequence[int], fault: VerificationError
) -> Verification:
    """Compare in double precision; raise the `fault` of single precision if the programs still differ."""
    wide = [float64.inputs(case) for case in cases]
    try:
        with float64.default(), _running():  # not every operator supports double precision
            expected, outputs = [interpreter.run(float64.program(program), wide, seeds) for program in programs]
        return _agreement(expected, outputs, STORED)
    except VerificationError:
        raise fault from None


@contextmanager
def _running() -> Iterator[None]:
    """Report errors of a cut program on inputs that the original accepts."""
    try:
        yield
    except GraphpruneError:
        raise
    except Exception as fault:
        raise VerificationError(
            f"the cut program fails where the original does not{because(fault)}; nothing was saved. "
            "Please report it with the model"
        ) from fault


@torch.no_grad()
def run(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int = 0) -> Any:
    """Output of a module on copies of its inputs, which it may change, with random numbers from a seed."""
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, dict(kwargs)))
    with seeded(seed):
        return module(*args, **kwargs)


def _run(program: Program, seeds: tuple[int, ...]) -> tuple[list[Inputs], list[Any]]:
    """Fresh inputs of sizes that the program accepts, larger ones for odd seeds, and its outputs."""
    cases: list[Inputs] = [fresh_inputs(program, seed, grow=seed % 2) for seed in seeds]
    try:
        return cases, interpreter.run(program, cases, seeds)
    except RuntimeError:
        pass  # some sizes must be even, or are fixed, without a constraint on their symbol
    cases = [fresh_inputs(program, seed) for seed in seeds]
    return cases, interpreter.run(program, cases, seeds)


def fresh_inputs(program: Program, seed: int, grow: int = 0) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Random inputs in the range of the example's, with every dynamic size larger by `grow`."""
    generator = torch.Generator().manual_seed(seed)
    leaves, spec = pytree.tree_flatten((program.inputs[0], dict(program.inputs[1])))
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    new = [_fresh(leaf, node.meta.get("val"), generator, grow) for leaf, node in zip(leaves, nodes, strict=True)]
    args, kwargs = pytree.tree_unflatten(new, spec)
    return args, kwargs


def _fresh(leaf: Any, val: Any, generator: torch.Generator, grow: int) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.numel():
        return leaf
    shape = [old + (grow if _is_dynamic(size) else 0) for old, size in zip(leaf.shape, val.shape, strict=True)]
    if leaf.dtype == torch.bool:
        return leaf.new_ones(shape)
    if not leaf.is_floating_point() and not leaf.is_complex():
        return torch.randint(int(leaf.min()), int(leaf.max()) + 1, shape, generator=generator).to(leaf)
    seen = leaf.to(torch.promote_types(leaf.dtype, torch.float32))
    drawn = torch.randn(shape, generator=generator, dtype=seen.dtype)
    return (drawn * seen.std(correction=0).cpu() + seen.mean().cpu()).to(leaf)


def _is_dynamic(size: Any) -> bool:
    """Whether a size may change; a symbol may be bound to a number."""
    return not isinstance(size, int) and size.node.maybe_as_int() is None


def _numbers(output: Any) -> list[Tensor]:
    """Leaves that are tensors or numbers."""
    leaves = pytree.tree_leaves(output)
    return [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, Tensor | int | float | complex)]


def _tolerance(reference: Tensor) -> float:
    """Tolerance for rounding in this type; integers count as computed in float32."""
    if not reference.is_floating_point() or reference.dtype == torch.float32:
        return RTOL
    return DOUBLE if reference.dtype == torch.float64 else 16 * torch.finfo(reference.dtype).eps


def _error(reference: Tensor, output: Tensor, what: str) -> float:
    if reference.shape != output.shape:
        raise VerificationError(
            f"{what}: shapes are {tuple(reference.shape)} and {tuple(output.shape)}; nothing was saved"
        )
    if not torch.isfinite(output).all():
        raise VerificationError(
            f"{what}: it holds numbers that are not finite (see that those of the model are; a file of its weights may "
            "be damaged); nothing was saved"
        )
    if not reference.numel():
        return 0.0
    wide = torch.promote_types(torch.promote_types(reference.dtype, output.dtype), torch.float64)
    a, b = reference.detach().to(wide), output.detach().to(wide)
    return float((a - b).abs().max()) / max(float(a.abs().max()), torch.finfo(torch.float32).tiny)


def verify_finite(program: Program, seeds: tuple[int, ...] = (0, 1)) -> Verification:
    """Check that the program runs and has finite outputs, also on inputs of other sizes than the traced ones.

    Raises:
        VerificationError: if it does not.
    """
    with _running():
        _, outputs = _run(program, seeds)
    for output in outputs:
        compare(output, output, "the cut program")
    return Verification(0.0, RTOL, len(seeds))
