"""Numerical equivalence: two programs that must agree are run on fresh random inputs.

Programs run one after the other, with the weights of at most one segment in memory (see `interpreter`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphprune.errors import GraphpruneError, VerificationError, because
from graphprune.execution import interpreter, precision
from graphprune.execution.fresh_inputs import STRONG, Variant, attempts, variants
from graphprune.execution.input_sizes import describe
from graphprune.execution.interface_cut import InterfaceCut
from graphprune.execution.liveness import Liveness, Watch
from graphprune.execution.module_state import plain_attention, seeded
from graphprune.execution.output_comparison import (
    DOUBLE,
    RTOL,
    Verification,
    difference,
    is_informative,
    numbers,
    paired,
    rounding_of,
)  # fmt: skip
from graphprune.execution.rounding import OPERATIONS
from graphprune.ir.program import Inputs, Program
from graphprune.ir.weights import KeepByName, Masked

SPREAD = 1e-3  # of the typical distance of values from their center
STORED = 1e-5  # in float64 with weights that are stored in float32
WHAT = "masked and cut program"
SAME = InterfaceCut()
FURTHER = (4, 5)  # seeds of cases that follow where units are inactive in all others
#: Rounding in double precision, as a share of the difference between single and double.
NOISE = 1e3 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps

_log = logging.getLogger(__name__)


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


def verify_cut(
    program: Program,
    small: Program,
    keep: KeepByName,
    seeds: tuple[int, ...] = (),
    *,
    rounded: bool = False,
    interface: InterfaceCut = SAME,
    liveness: Liveness | None = None,
) -> Verification:
    """Check that `small` has the outputs of the masked `program` on other masks, indices and sizes than the traced.

    Half precision is computed in single. Where rounding in single precision exceeds the tolerance, both must agree in
    double. `rounded` allows for new weights of `small` that were rounded to their stored type, which changes outputs as
    far as rounding in the computation does; `interface` has the
    retained indices of inputs and outputs that may be narrower. Where `liveness` still has indices that were always
    zero, further cases follow.

    Raises:
        VerificationError: if it does not.
    """
    reference, tolerance = mask_program(program, keep), None
    if precision.uses(program, precision.SINGLE):
        tolerance = _rounding_of_weights(program) if rounded else None
        _require_running(small)
        reference, small = (precision.program(side, precision.SINGLE) for side in (reference, small))
    alive = liveness or Liveness()
    cases = accepted(reference, seeds, watch=alive.watch).compared(interface)
    errors = _compared(reference, small, cases, tolerance, rounded)
    error, allowed, count = errors.error, errors.tolerance, len(cases.inputs)
    if alive.unseen:
        more = accepted(reference, FURTHER, kinds=STRONG, watch=alive.watch).compared(interface)
        errors = _compared(reference, small, more, tolerance, rounded)
        error, allowed, count = max(error, errors.error), max(allowed, errors.tolerance), count + len(more.inputs)
    verification = Verification(error, allowed, count, cases.sizes, cases.refused, _blind(cases.outputs), alive.unseen)
    if verification.blind:
        _log.warning(
            "the proof shows nothing about %s: all numbers are the same, or none is finite",
            ", ".join(verification.blind),
        )
    return verification


def _compared(reference: Program, small: Program, cases: "Cases", tolerance: float | None, rounded: bool) -> "_Errors":
    """Errors of a cut program, in double precision where they are too great in single."""
    with _running():
        outputs = interpreter.run(small, cases.given, cases.seeds)
    errors = _errors(cases.outputs, outputs, tolerance, rounded=rounded)
    return errors if errors.agree else _decided_in_double(reference, small, cases, errors, rounded)


@dataclass(frozen=True)
class Cases:
    """Inputs that a program accepts, their seeds and outputs, the sizes of each, and the sizes that it refused."""

    inputs: Sequence[Inputs]
    seeds: Sequence[int]
    outputs: Sequence[Any]
    sizes: tuple[str, ...]
    refused: tuple[str, ...]
    interface: InterfaceCut = SAME

    def compared(self, interface: InterfaceCut) -> "Cases":
        """Cases for the comparison with a program whose inputs and outputs are narrower."""
        return replace(self, outputs=list(map(interface.expected, self.outputs)), interface=interface)

    @property
    def given(self) -> Sequence[Inputs]:
        """Inputs of the other program."""
        return list(map(self.interface.given, self.inputs))


def accepted(
    program: Program,
    seeds: Sequence[int] = (),
    what: str = "the original",
    kinds: Sequence[Variant] = (),
    watch: Watch = interpreter.NOTHING,
) -> Cases:
    """Run a program on every kind of inputs; where it raises an error, on inputs closer to those of the example.

    Raises:
        VerificationError: if it raises one on the example, too.
    """
    kinds = kinds or variants(program)
    chosen = tuple(seeds or range(len(kinds)))
    remaining = [attempts(program, seed, kinds[seed % len(kinds)]) for seed in chosen]
    inputs, notes = map(list, zip(*map(next, remaining), strict=True))
    outputs = interpreter.attempt(program, inputs, chosen, watch)
    refused: dict[str, None] = {}
    while failed := [i for i, output in enumerate(outputs) if isinstance(output, Exception)]:
        for i in failed:
            refused[describe(inputs[i], program)] = None
            inputs[i], notes[i] = _next(remaining[i], outputs[i], what)
        again = interpreter.attempt(program, [inputs[i] for i in failed], [chosen[i] for i in failed], watch)
        for i, output in zip(failed, again, strict=True):
            outputs[i] = output
    sizes = [describe(case, program) for case in inputs]
    used = tuple(size + note for size, note in zip(sizes, notes, strict=True))
    return Cases(inputs, chosen, outputs, used, tuple(size for size in refused if size not in sizes))


def _next(remaining: Iterator[tuple[Inputs, str]], error: Exception, what: str) -> tuple[Inputs, str]:
    following = next(remaining, None)
    if following is None:
        raise VerificationError(
            f"{what} fails on the inputs that it was traced with{because(error)}; nothing was saved"
        ) from error
    return following


def _require_running(small: Program) -> None:
    """Run a program once in its own precision, whose operators may refuse what others accept."""
    with _running():
        interpreter.run(small, [small.inputs], (0,))


def _rounding_of_weights(program: Program) -> float:
    types = {node.meta["val"].dtype for node in program.tensors()} & precision.SINGLE.keys()
    return max((16 * torch.finfo(kind).eps for kind in types), default=RTOL)


@dataclass(frozen=True)
class _Errors:
    """Greatest errors over all cases, relative to magnitudes and to their spread, and the tolerance of each."""

    error: float
    tolerance: float
    spread: float
    spread_tolerance: float

    @property
    def agree(self) -> bool:
        """Whether both errors are within their tolerances."""
        return self.error <= self.tolerance and self.spread <= self.spread_tolerance

    def fault(self) -> VerificationError:
        """Error that states the difference."""
        error, allowed, of = self.error, self.tolerance, "value"
        if error <= allowed:
            error, allowed, of = self.spread, self.spread_tolerance, "spread of values"
        return VerificationError(
            f"{WHAT}: they differ by {error:.2e} of the typical {of}, allowed is {allowed:.0e}; nothing was saved"
        )


def _errors(
    expected: Sequence[Any],
    outputs: Sequence[Any],
    tolerance: float | None = None,
    reduced: Sequence[Any] = (),
    rounded: bool = False,
) -> _Errors:
    """Errors of all cases; `reduced` are the expected outputs in lower precision, by which rounding is measured.

    Weights that were `rounded` change outputs as far as the difference between the two precisions, and spreads at will.

    Raises:
        VerificationError: if shapes disagree, or a number is finite on one side alone.
    """
    errors, allowed, spreads, share = [0.0], [0.0], [0.0], OPERATIONS if rounded else NOISE
    for case, sides in enumerate(zip(expected, outputs, strict=True)):
        rounding = _rounding(expected[case], reduced[case], share) if reduced else []
        for i, (a, b) in enumerate(paired(*sides, WHAT)):
            apart = difference(a, b, f"{WHAT}, output {i}", rounding[i] if rounding else None)
            errors.append(apart.relative)
            allowed.append(tolerance or rounding_of(a))
            spreads.append(apart.spread)
    if len(errors) == 1:
        raise VerificationError(f"{WHAT}: they have no outputs that are numbers; nothing was saved")
    return _Errors(max(errors), max(allowed), max(spreads), float("inf") if rounded else SPREAD)


def _decided_in_double(reference: Program, small: Program, cases: Cases, single: _Errors, rounded: bool) -> _Errors:
    """Errors in double precision, where what remains of rounding is measured by that of single precision.

    Programs in double precision are compared as they are, with the rounding of the reference in single.

    Raises:
        VerificationError: if they differ in both precisions, or in single where operators do not support double.
    """
    native = precision.uses(reference, precision.REDUCED)
    types = precision.REDUCED if native else precision.DOUBLE
    sides = [(reference, cases.inputs)] if native else [(reference, cases.inputs), (small, cases.given)]
    try:
        with precision.default_double(not native):
            outputs = [
                interpreter.run(
                    precision.program(side, types), [precision.inputs(i, types) for i in inputs], cases.seeds
                )
                for side, inputs in sides
            ]
    except Exception as fault:  # operators raise any exception for types that they do not support
        return _decided_in_single(single, fault)
    outputs[0] = list(map(cases.interface.expected, outputs[0]))
    if native:
        wide, other = cases.outputs, interpreter.run(small, cases.given, cases.seeds)
        narrower = precision.uses(reference, {**precision.DOUBLE, **precision.SINGLE})
        tolerance = STORED if narrower else DOUBLE
    else:
        wide, other, tolerance = outputs[0], outputs[1], max(STORED, single.tolerance if single.tolerance > RTOL else 0)
    reduced = outputs[0] if native else cases.outputs
    errors = _errors(wide, other, tolerance, reduced, rounded)
    if not errors.agree:
        raise single.fault()
    return errors


def _decided_in_single(single: _Errors, fault: Exception) -> _Errors:
    if not single.error <= single.tolerance:
        raise single.fault() from fault
    _log.warning(
        "values that vary by little in comparison with their size were not compared as closely as others, because "
        "the model does not run in double precision%s",
        because(fault),
    )
    return single


def _rounding(expected: Any, reduced: Any, share: float) -> list[Tensor]:
    """Rounding of each output in double precision, as a share of its difference between two precisions."""
    pairs = zip(numbers(expected), numbers(reduced), strict=True)
    return [
        share * (wide - narrow.to(wide.dtype)).abs()
        if wide.is_floating_point() or wide.is_complex()
        else torch.zeros(wide.shape)
        for wide, narrow in pairs
    ]


def _blind(outputs: Sequence[Any]) -> tuple[str, ...]:
    """Names of the outputs that show nothing in any case.

    Raises:
        VerificationError: if all outputs are empty, or none holds a finite number.
    """
    leaves = list(zip(*map(numbers, outputs), strict=True))
    if not any(leaf.numel() for cases in leaves for leaf in cases):
        raise VerificationError(
            "all outputs of the original are empty, so that the cut cannot be compared; capture the model with an "
            "example that has at least one row; nothing was saved"
        )
    if not any(bool(leaf.isfinite().any()) for cases in leaves for leaf in cases):
        raise VerificationError(
            "no output of the original holds a finite number, only NaN or infinity, so that the cut cannot be compared "
            "(see that the weights and the example are right); nothing was saved"
        )
    return tuple(f"output {i}" for i, cases in enumerate(leaves) if not any(map(is_informative, cases)))


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
    with seeded(seed), plain_attention():
        return module(*args, **kwargs)


def verify_finite(program: Program, reference: Program | None = None) -> Verification:
    """Check that a program runs, also on inputs of other sizes, with finite outputs wherever its reference has them.

    Without a reference, numbers of an output that are not finite must not come from weights that are not.

    Raises:
        VerificationError: if it does not.
    """
    cases = accepted(program, what="the cut program")
    leaves = [leaf for output in cases.outputs for leaf in numbers(output)]
    if not leaves or not all(bool(leaf.isfinite().all()) for leaf in leaves):
        _require_explained(program, reference, cases)
    return Verification(0.0, RTOL, len(cases.inputs), cases.sizes, cases.refused, _blind(cases.outputs))


def _require_explained(program: Program, reference: Program | None, cases: Cases) -> None:
    """Raise a VerificationError unless the reference, or the computation on finite weights, is not finite either."""
    if reference is not None and reference.violation(*cases.inputs[0]) is not None:
        reference = None  # its inputs are wider
    expected = interpreter.run(reference, cases.inputs, cases.seeds) if reference is not None else cases.outputs
    for outputs in zip(expected, cases.outputs, strict=True):
        for i, (a, b) in enumerate(paired(*outputs, "the cut program")):
            alike = a.shape == b.shape and bool((b.isfinite() | ~a.isfinite()).all())
            if not alike or (reference is None and not bool(b.isfinite().any()) and b.numel()):
                raise _not_finite(f"output {i}")
    if not numbers(cases.outputs):
        raise VerificationError("the cut program has no outputs that are numbers; nothing was saved")
    damaged = (name for name in sorted(program.parameters) if not bool(program.weights[name].isfinite().all()))
    if name := next(damaged, None):
        raise _not_finite(name)


def _not_finite(where: str) -> VerificationError:
    return VerificationError(
        f"the cut program, {where}: it holds numbers that are not finite (see that those of the model are; a file of "
        "its weights may be damaged); nothing was saved"
    )
