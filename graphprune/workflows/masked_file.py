"""Comparison of a pruned ONNX file with the file that was pruned, in which the removed numbers are zero."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.errors import ExportError, VerificationError
from graphprune.execution.cases.fresh_inputs import variants
from graphprune.execution.output_comparison import compare
from graphprune.exporters.export_folders.rewritten_file import accepted_inputs
from graphprune.exporters.onnx_tools.original_interface import OriginalInterface
from graphprune.exporters.onnx_tools.sessions import OnnxRunner, open_graph, open_model
from graphprune.frontends.onnx_import.onnx_reading import follow_links
from graphprune.ir.program import Dropped, ExpertSplit, Factored, Program, Rewritten, Rotatable
from graphprune.ir.weights import Masked, widen
from graphprune.passes.rewriting.rewrite import interface_cut
from graphprune.planning.facts import Refits
from graphprune.planning.plan import Plan
from graphprune.support.packages import load
from graphprune.support.packages import onnx_ir as ir

MESSAGE_BYTES = 2**30  # a message of protobuf, as a graph in memory is one, has less than 2 GiB


class NotMaskableError(Exception):
    """No numbers of the original file compute what the pruned model does; the message is the reason."""


def compare_with_masked(program: Program, pruned: Path) -> float:
    """Error of a pruned file against its masked original, relative to the typical value.

    Raises:
        NotMaskableError: if the original cannot be masked so.
        ExportError: if they disagree.
    """
    assert program.source is not None
    if not {Rewritten, Plan} <= program.facts.keys():
        raise NotMaskableError("nothing was cut")
    original = program.fact(Rewritten).original
    masked = _masked(program, original, program.source.path, pruned.parent)
    cut = interface_cut(original, program.fact(Plan))
    names = OriginalInterface.of(program.source.path)
    runner, errors = open_model(pruned), []
    for seed, variant in enumerate(variants(original)):
        for inputs in accepted_inputs(original, seed, variant):
            leaves = [original.flat(*side) for side in (inputs, cut.given(inputs))]
            full, narrow = (dict(zip(names.inputs, side, strict=True)) for side in leaves)
            expected = cut.expected(list(masked.run(full).values()))
            try:
                outputs, kind = list(runner.run(narrow).values()), program.source.dtype
                result = compare(expected, outputs, "masked file and pruned file", weights=kind)
            except VerificationError as fault:
                raise ExportError(str(fault)) from fault
            errors.append(result.max_error)
            break
    return max(errors)


def _masked(program: Program, original: Program, file: Path, scratch: Path) -> OnnxRunner:
    """The original file in ONNX Runtime, with zeros where indices were removed, and with the refitted weights.

    One that is too large for memory in one piece lies in the folder `scratch` for a moment.
    """
    model = ir.load(file)
    folder = follow_links(file, model)
    load("onnx_ir.passes.common").LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=2)(model)
    holders = model.graph.initializers
    tensor = load("onnx_ir.tensor_adapters").TorchTensor
    names = program.source.names if program.source else {}
    for weight, numbers in _numbers(program, original):
        name = names.get(weight, weight)
        if name not in holders:
            raise NotMaskableError(f"{name} is no constant of the file itself")
        old = holders[name].const_value
        new = tensor(numbers.to(original.weights[weight].dtype).contiguous(), name=name)
        if old is not None and (tuple(old.shape), old.dtype) != (tuple(new.shape), new.dtype):
            raise NotMaskableError(f"{name} has quantized numbers in the file")
        holders[name].const_value = new
    stored = (value.const_value for value in holders.values())
    if sum(one.nbytes for one in stored if one is not None and not isinstance(one, ir.ExternalTensor)) < MESSAGE_BYTES:
        return open_graph(model, folder / file.name)
    with TemporaryDirectory(dir=scratch) as own:
        ir.save(model, Path(own) / file.name, external_data=f"{file.name}.data")
        return open_model(Path(own) / file.name)


def _numbers(program: Program, original: Program) -> Iterator[tuple[str, Tensor]]:
    """Weights of the masked original that differ from those of the file."""
    if foreign := [kind for kind in (ExpertSplit, Factored, Rotatable, Dropped) if kind in program.facts]:
        raise NotMaskableError(f"the graph has other operators than the file ({foreign[0].__name__.lower()})")
    plan, rewritten = program.fact(Plan), program.fact(Rewritten)
    groups = original.fact(Dependencies).by_name
    if inexact := [name for name in plan.groups if not groups[name].maskable]:
        raise NotMaskableError(f"the cut of {inexact[0]} changes the remaining values, as a norm does")
    refits = program.facts.get(Refits)
    changed = refits.changed if refits else set[str]()
    if new := changed - original.weights.keys():
        raise NotMaskableError(f"the refit added {sorted(new)[0]}")
    zeros = Masked(original.weights, rewritten.keep)
    for name in sorted({*rewritten.keep, *changed}):
        yield name, _widened(program, original, name) if name in changed else zeros[name]


def _widened(program: Program, original: Program, name: str) -> Tensor:
    rewritten, tensor = program.fact(Rewritten), program.weights[name]
    tensor = tensor / rewritten.scales.get(name, 1.0)
    sizes = original.shapes()[name]
    for dim, indices in sorted(rewritten.keep.get(name, {}).items()):
        tensor = widen(tensor, dim, indices, sizes[dim])
    return tensor
