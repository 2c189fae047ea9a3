"""Numerical equivalence: two programs that must agree are run on fresh random inputs.

Programs run one after the other, with the weights of at most one segment in memory (see `interpreter`).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphprune.errors import VerificationError
from graphprune.execution import interpreter, precision
from graphprune.execution.cases.fresh_cases import Cases, accepted
from graphprune.execution.cases.fresh_inputs import STRONG, TRACED
from graphprune.execution.cut_errors import CutErrors, compared, running
from graphprune.execution.interface_cut import SAME, InterfaceCut
from graphprune.execution.liveness import Liveness
from graphprune.execution.module_state import plain_attention, seeded
from graphprune.execution.output_comparison import (
    RTOL,
    Verification,
    is_informative,
    numbers,
    paired,
)  # fmt: skip
from graphprune.ir.program import Program
from graphprune.ir.weights import KeepByName, Masked

FURTHER = ((4, 5), (6, 7), (8, 9), (10, 11))  # seeds of cases that follow while units are inactive in all others
SECOND = (6, 7)  # seeds of second calls, which read the buffers that the first one wrote

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
    zero, further cases follow. A program that writes to buffers is also called a second time.

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
    errors, count = [compared(reference, small, cases, tolerance, rounded)], len(cases.inputs)
    if program.written():
        sides, second = _second_calls(reference, small, cases, alive)
        errors.append(compared(*sides, second, tolerance, rounded))
        count += len(second.inputs)
    inactive = 0
    for further in FURTHER:
        if alive.inactive in (0, inactive):  # the last cases have seen all, or no more
            break
        inactive = alive.inactive
        more = accepted(reference, further, kinds=STRONG, watch=alive.watch).compared(interface)
        errors.append(compared(reference, small, more, tolerance, rounded))
        count += len(more.inputs)
    worst, blind = CutErrors.greatest(errors), _blind(cases.outputs)
    verification = Verification(worst.error, worst.tolerance, count, cases.sizes, cases.refused, blind, alive.unseen)
    if verification.blind:
        _log.warning(
            "the proof shows nothing about %s: all numbers are the same, or none is finite",
            ", ".join(verification.blind),
        )
    return verification


def _second_calls(
    reference: Program, small: Program, cases: Cases, alive: Liveness
) -> tuple[tuple[Program, Program], Cases]:
    """Both programs as a first call leaves them, and cases that read the buffers which it wrote.

    Before the first call, buffers often hold zeros, which hide the weights that they meet.
    """
    reference = interpreter.continued(reference, cases.inputs[0], cases.seeds[0])
    with running():
        small = interpreter.continued(small, cases.given[0], cases.seeds[0])
    second = accepted(reference, SECOND, kinds=TRACED, watch=alive.watch)
    return (reference, small), second.compared(cases.interface)


def _require_running(small: Program) -> None:
    """Run a program once in its own precision, whose operators may refuse what others accept."""
    with running():
        interpreter.run(small, [small.inputs], (0,))


def _rounding_of_weights(program: Program) -> float:
    types = {node.meta["val"].dtype for node in program.tensors()} & precision.SINGLE.keys()
    return max((16 * torch.finfo(kind).eps for kind in types), default=RTOL)


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
