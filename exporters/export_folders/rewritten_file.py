"""Write a program that was loaded from an ONNX file as ONNX again, with the interface of the file."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree

from graphprune.errors import ExportError, InputError, VerificationError
from graphprune.execution import interpreter
from graphprune.execution.cases.fresh_inputs import Variant, attempts, variants
from graphprune.execution.cases.input_sizes import describe
from graphprune.execution.output_comparison import compare
from graphprune.exporters.contract import NO_OPTIONS, ExportReport
from graphprune.exporters.export_folders.export_report import write_report
from graphprune.exporters.onnx_tools.onnx_files import OPSET, OPSETS, facts, save_onnx, to_onnx
from graphprune.exporters.onnx_tools.original_interface import OriginalInterface
from graphprune.exporters.onnx_tools.program_subjects import named_subject
from graphprune.exporters.onnx_tools.sessions import CPU, OnnxRunner, open_model
from graphprune.ir.program import Inputs, Program
from graphprune.support.atomic_output import new_folder


def write_again(program: Program, output: Path, *, force: bool = False) -> ExportReport:
    """Write the file, and compare it with the program in ONNX Runtime on inputs of several sizes.

    Raises:
        ExportError: if it cannot be exported, or the file does not agree with the program.
    """
    assert program.source is not None
    interface = OriginalInterface.of(program.source.path)
    subject = named_subject(program, *interface.neutral)
    start = time.perf_counter()
    exported = to_onnx(subject, interface.opset if interface.opset in OPSETS else min(OPSET, OPSETS[0])).model
    interface.restore(exported, program.source.names)
    seconds = {"export": time.perf_counter() - start}
    with new_folder(output, force) as folder:
        path = save_onnx(exported, folder)
        runner = open_model(path)
        table = {
            **facts(path, subject),
            "provider": CPU,
            "seconds": {**seconds, "open": runner.seconds},
            "source": None,
        }
        report = write_report(folder, None, "onnx", NO_OPTIONS, table, {CPU: agreement(program, runner, interface)})
    return replace(report, output=output)


def agreement(program: Program, runner: OnnxRunner, interface: OriginalInterface) -> dict[str, Any]:
    """Errors of a file against its program by the sizes of the inputs.

    Raises:
        ExportError: if they disagree, or ONNX Runtime runs the file on no inputs that the program accepts.
    """
    assert program.source is not None
    cases, kind = {}, program.source.dtype
    for seed, variant in enumerate(variants(program)):
        for inputs in accepted_inputs(program, seed, variant):
            feeds = dict(zip(interface.inputs, program.flat(*inputs), strict=True))
            with torch.no_grad():
                (outputs,) = interpreter.run(program, [inputs], (seed,))
            try:
                sides = pytree.tree_leaves(outputs), list(runner.run(feeds).values())
                result = compare(*sides, "program and ONNX file", weights=kind)
            except VerificationError as fault:
                raise ExportError(str(fault)) from fault
            cases[f"{describe(inputs, program)}, {variant.masks}"] = result
            break
    bound = max(case.tolerance for case in cases.values())
    errors = {name: {"all": {"relative": case.max_error}} for name, case in cases.items()}
    return {"bound": bound, "worst": max(case.max_error for case in cases.values()), "cases": errors}


def accepted_inputs(program: Program, seed: int, variant: Variant) -> Iterator[Inputs]:
    """Inputs of one kind with which the program runs, in the order of preference."""
    for inputs, _ in attempts(program, seed, variant):
        try:
            interpreter.run(program, [inputs], (seed,))
        except (InputError, RuntimeError, IndexError):
            continue
        yield inputs
