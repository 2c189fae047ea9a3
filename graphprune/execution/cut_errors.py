"""Errors of a cut program in comparison with the masked one, in double precision where rounding may explain them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.errors import GraphpruneError, VerificationError, because
from graphprune.execution import interpreter, precision
from graphprune.execution.cases.fresh_cases import Cases
from graphprune.execution.output_comparison import DOUBLE, RTOL, difference, numbers, paired, rounding_of
from graphprune.execution.rounding import OPERATIONS
from graphprune.ir.program import Inputs, Program

WHAT = "masked and cut program"
SPREAD = 1e-3  # of the typical distance of values from their center
STORED = 1e-5  # in float64 with weights that are stored in float32
#: Rounding in double precision, as a share of the difference between single and double.
NOISE = 1e3 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CutErrors:
    """Greatest errors over all cases, relative to magnitudes and to their spread, and the tolerance of each."""

    error: float
    tolerance: float
    spread: float
    spread_tolerance: float

    @classmethod
    def greatest(cls, errors: Sequence["CutErrors"]) -> "CutErrors":
        """Greatest of each over several cases."""
        return cls(*map(max, zip(*((e.error, e.tolerance, e.spread, e.spread_tolerance) for e in errors), strict=True)))

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


def compared(reference: Program, small: Program, cases: Cases, tolerance: float | None, rounded: bool) -> CutErrors:
    """Errors of a cut program; cases in which they are too great in single precision are decided in double."""
    with running():
        outputs = interpreter.run(small, cases.given, cases.seeds)
    pairs = zip(cases.outputs, outputs, strict=True)
    errors = [_errors([a], [b], tolerance, rounded=rounded) for a, b in pairs]
    failed = [i for i, each in enumerate(errors) if not each.agree]
    failed.sort(key=lambda i: _entries(cases.inputs[i]))
    for part in (failed[:1], failed[1:]):  # a wrong cut is refused by the smallest case alone
        if part:
            single = CutErrors.greatest([errors[i] for i in part])
            decided = _decided_in_double(reference, small, cases.only(part), single, rounded)
            errors = [decided if i in part else each for i, each in enumerate(errors)]
    return CutErrors.greatest(errors)


def _entries(inputs: Inputs) -> int:
    return sum(leaf.numel() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))


def _errors(
    expected: Sequence[Any],
    outputs: Sequence[Any],
    tolerance: float | None = None,
    reduced: Sequence[Any] = (),
    rounded: bool = False,
) -> CutErrors:
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
    return CutErrors(max(errors), max(allowed), max(spreads), float("inf") if rounded else SPREAD)


def _decided_in_double(reference: Program, small: Program, cases: Cases, single: CutErrors, rounded: bool) -> CutErrors:
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


def _decided_in_single(single: CutErrors, fault: Exception) -> CutErrors:
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
    return [_apart(*pair, share) for pair in zip(numbers(expected), numbers(reduced), strict=True)]


def _apart(wide: Tensor, narrow: Tensor, share: float) -> Tensor:
    """Share of the difference of an output in two precisions: of both parts of complex numbers, and 0 of integers."""
    if not wide.is_floating_point() and not wide.is_complex():
        return torch.zeros(wide.shape)
    apart = share * (wide - narrow.to(wide.dtype))
    return torch.complex(apart.real.abs(), apart.imag.abs()) if wide.is_complex() else apart.abs()


@contextmanager
def running() -> Iterator[None]:
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
