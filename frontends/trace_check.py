"""Check of a fresh capture against its module: both must compute the same, on the example and on other inputs."""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.func import functional_call

from graphprune.errors import InputError, TraceError, VerificationError, because, reason_of
from graphprune.execution import interpreter, precision
from graphprune.execution.cases.fresh_inputs import LEFT, Variant, attempts
from graphprune.execution.module_state import evaluation_mode, plain_attention, preserved_state, seeded, uncompiled
from graphprune.execution.output_comparison import compare
from graphprune.execution.rounding_check import compare_closely
from graphprune.frontends.first_difference import ComputedValues, first_difference
from graphprune.frontends.generated_weights import TooLargeError, generated, lacks_numbers
from graphprune.frontends.refusals import quiet
from graphprune.frontends.written_tensors import restored
from graphprune.ir.program import Inputs, Program
from graphprune.ir.weights import Layered

log = logging.getLogger(__name__)
SEED = 1
WHAT = "module and capture"


@dataclass(frozen=True)
class CapturedModule:
    """Module to compare with, in evaluation mode; `numbers` are those of weights without memory."""

    module: nn.Module
    numbers: Mapping[str, Tensor]
    has_branches: bool = True  # operators that run other graphs cannot be watched

    @classmethod
    def of(cls, module: nn.Module) -> "CapturedModule":
        """CapturedModule of a module, whose weights may have no memory."""
        return cls(module, generated(module))

    @torch.no_grad()
    def run(self, inputs: Inputs) -> Any:
        """Outputs for copies of inputs; whatever the module writes to is restored."""
        args, kwargs = copied(inputs)
        module = self.module
        with ExitStack() as blocks:
            blocks.enter_context(evaluation_mode(module))
            state = blocks.enter_context(preserved_state(module))
            for block in (
                uncompiled(module),
                restored(state.tensors, at_once=self.has_branches),
                quiet(),
                seeded(SEED),
            ):
                blocks.enter_context(block)
            outputs = (
                functional_call(module, dict(self.numbers), args, dict(kwargs))
                if self.numbers
                else module(*args, **kwargs)
            )
            return pytree.tree_map_only(Tensor, Tensor.clone, outputs)


def check(program: Program, subject: CapturedModule) -> Program:
    """Program that is compared with its module, on its example and on inputs of other values and sizes.

    Whatever is not compared is listed in its `unchecked`, and warned about.

    Raises:
        TraceError: if it differs; names the first operator that does, and its line of model code.
    """
    subject = replace(subject, has_branches=bool(program.submodules))
    run = replace(program, weights=Layered((subject.numbers, program.weights))) if subject.numbers else program
    try:
        unchecked = tuple(_compare(run, subject))
    except TooLargeError as fault:
        unchecked = (f"numbers for its weights would take too much memory{because(fault)}",)
    for why in unchecked:
        log.warning("%s is not compared with its capture: %s", type(subject.module).__name__, why)
    return replace(program, unchecked=(*program.unchecked, *unchecked))


def _compare(program: Program, subject: CapturedModule) -> Iterator[str]:
    """Compare on the example, then on fresh inputs; yield what cannot be compared."""
    if any(isinstance(leaf, Tensor) and lacks_numbers(leaf) for leaf in program.flat(*program.inputs)):
        yield "its inputs hold no numbers"
        return
    expected = _expected(subject, program.inputs)
    if isinstance(expected, Exception):
        yield f"outside of torch.export it fails on its example{because(expected)}"
        return
    problems = list(_difference(program, subject, program.inputs, expected))
    yield from problems
    if problems or not any(isinstance(leaf, Tensor) for leaf in program.flat(*program.inputs)):
        return
    refused = None
    for inputs in _fresh(program):
        expected = _expected(subject, inputs)
        if not isinstance(expected, Exception):
            yield from _difference(program, subject, inputs, expected)
            return
        refused = refused or expected
    if refused is not None:
        yield f"it fails on inputs other than the example{because(refused)}"


def _fresh(program: Program) -> Iterator[Inputs]:
    """Inputs of other values, of other sizes first."""
    for inputs, _ in attempts(program, SEED, Variant("large", LEFT)):
        if program.violation(*inputs) is None:
            yield inputs


def _expected(subject: CapturedModule, inputs: Inputs) -> Any:
    """Outputs of the module, or its error."""
    try:
        return subject.run(inputs)
    except TooLargeError:
        raise
    except Exception as fault:  # modules raise anything
        return fault


def _difference(program: Program, subject: CapturedModule, inputs: Inputs, expected: Any) -> Iterator[str]:
    """Raise a TraceError if the program computes other outputs; yield a reason if the module is not repeatable."""
    outputs: Any = ()
    try:
        (outputs,) = interpreter.run(program, [inputs], (SEED,))
        if _has_numbers(expected) or _has_numbers(outputs):
            compare_closely(outputs, expected, WHAT, lambda: subject.run(inputs))
        return
    except (TooLargeError, InputError):
        raise
    except Exception as fault:
        difference = fault
    with plain_attention():
        if _agree(subject, inputs, outputs):
            yield "padded positions, where torch's fast path of attention returns zeros, and captures do not"
            return
    if not _agree(subject, inputs, expected):
        yield "it returns other numbers at every call"
        return
    if _agree_in_wider_precision(program, subject, inputs):
        log.info("module and capture differ by rounding alone: they agree in a wider precision")
        return
    raise TraceError(_explained(program, subject, inputs, difference)) from difference


def _has_numbers(outputs: Any) -> bool:
    return any(isinstance(leaf, Tensor | int | float | complex) for leaf in pytree.tree_leaves(outputs))


def _agree(subject: CapturedModule, inputs: Inputs, outputs: Any) -> bool:
    try:
        compare_closely(outputs, subject.run(inputs), WHAT, lambda: subject.run(inputs))
    except VerificationError:
        return False
    return True


def _agree_in_wider_precision(program: Program, subject: CapturedModule, inputs: Inputs) -> bool:
    """Whether both compute the same in a wider type, in which rounding decides no choice, such as that of an expert."""
    half = precision.uses(program, precision.SINGLE)
    types, wide = (precision.SINGLE, torch.float32) if half else (precision.DOUBLE, torch.float64)
    try:
        converted = precision.inputs(inputs, types)
        numbers = {name: tensor.to(types.get(tensor.dtype, tensor.dtype)) for name, tensor in subject.numbers.items()}
        module = replace(subject, module=copy.deepcopy(subject.module).to(wide), numbers=numbers)
        with precision.default_double(not half):
            (outputs,) = interpreter.run(precision.program(program, types), [converted], (SEED,))
            compare(module.run(converted), outputs, WHAT)
    except Exception:  # modules raise anything, and may not be copied, or compute in one type alone
        return False
    return True


def _explained(program: Program, subject: CapturedModule, inputs: Inputs, difference: Exception) -> str:
    name = type(subject.module).__name__
    try:
        with ComputedValues() as computed:
            subject.run(inputs)
        where = first_difference(program, inputs, computed)
    except Exception:  # the difference itself is known
        where = ""
    place = f"; the first operator that differs is {where}" if where else ""
    reason = reason_of(difference).removesuffix("; nothing was saved")
    advice = "The model decides by something that torch.export does not see: write these lines with operators of torch"
    if any(part.training for part in subject.module.modules()):
        advice += ". If it changes weights in its method train, call module.eval() before the capture"
    return f"the capture of {name} does not compute what the module does (reason: {reason}){place}. {advice}"


def copied(inputs: Inputs) -> Inputs:
    """Inputs whose containers and tensors may be changed; tensors have the same strides."""
    args, kwargs = pytree.tree_map_only(Tensor, _copy, (inputs[0], dict(inputs[1])))
    return args, kwargs


def _copy(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or lacks_numbers(tensor) or 0 not in tensor.stride():
        return tensor.detach().clone()
    once = tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())
    return tensor.detach()[once].clone().expand(tensor.shape)
