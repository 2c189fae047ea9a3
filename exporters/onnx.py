"""Saved models and programs as ONNX of standard operators, for every runtime that reads it."""

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphprune import hf
from graphprune.atomic import check_output, new_folder
from graphprune.contracts import ExportReport
from graphprune.errors import ExportError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.decoders import decoder_subject, is_decoder
from graphprune.exporters.encoders import encoder_subject
from graphprune.exporters.folders import copy_beside, require_apart
from graphprune.exporters.onnx_files import facts, save_onnx, to_onnx
from graphprune.exporters.onnx_runtime import open_model
from graphprune.exporters.parity import FLOAT32, Parity, check
from graphprune.exporters.subjects import PAST, PRESENT, Subject, cache_names, named_dimensions
from graphprune.program import Program

REPORT = "export_report.json"
_PACKAGES = ("graphprune", "torch", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")


@EXPORTERS.register("onnx")
def export(source: Path, output: Path, *, force: bool = False) -> ExportReport:
    """Export the model of a Hugging Face folder; a decoder with its cache as inputs and outputs.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    require_apart(source, output)
    check_output(output, force)
    return write(subject_of(source), source, output, target="onnx", force=force)


def export_program(program: Program, output: Path, *, force: bool = False) -> ExportReport:
    """Export a program, by the names of its inputs: one of `cached_decoder` becomes a decoder with cache.

    Raises:
        ExportError: as `export`.
    """
    check_output(output, force)
    source = program.source.path if program.source is not None and program.source.kind == "huggingface" else None
    return write(program_subject(program), source, output, target="onnx", force=force, of_source=False)


def subject_of(source: Path) -> Subject:
    """The model of a folder, ready to be exported."""
    return subject_of_model(hf.module(source), source)


def subject_of_model(model: nn.Module, folder: Path) -> Subject:
    """A model, ready to be exported; `folder` may say how large its images are."""
    return decoder_subject(model) if is_decoder(model) else encoder_subject(model, folder)


def write(
    subject: Subject, source: Path | None, output: Path, *, target: str, force: bool, of_source: bool = True
) -> ExportReport:
    """Export, check, and only then give the folder its name.

    Tokenizer and settings come from `source`; only if it is the model `of_source` may a later check compare with it.
    """
    start = time.perf_counter()
    program = to_onnx(subject)
    exported = time.perf_counter() - start
    with new_folder(output, force) as folder:
        path = save_onnx(program, folder)
        runner = open_model(path)
        parity = check(subject, runner, FLOAT32)
        seconds = {"export": exported, "open": runner.seconds}
        table = {**facts(path, subject), "provider": runner.provider, "seconds": seconds}
        table |= {} if of_source else {"source": None}
        report = finish(folder, source, target, table, {runner.provider: parity})
    return replace(report, output=output)


def finish(
    folder: Path, source: Path | None, target: str, table: Mapping[str, Any], parity: Mapping[str, Parity]
) -> ExportReport:
    """Add what generation needs, and the report."""
    if source is not None:
        copy_beside(source, folder)
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    whole = {
        "target": target, "source": str(source.resolve()) if source is not None else None, "versions": versions(),
        "machine": platform.machine(), "threads": torch.get_num_threads(), **table,
        "parity": {provider: checked.to_dict() for provider, checked in parity.items()},
    }  # fmt: skip
    (folder / REPORT).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return ExportReport(target, folder, sorted(path.name for path in folder.iterdir()), whole)


def versions() -> dict[str, str]:
    """The versions of what takes part in an export."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # one of the two runtimes is never there
            continue
    return found


def program_subject(program: Program) -> Subject:
    """A program, its inputs named as its placeholders stand; a list of pairs after them is a cache.

    Raises:
        ExportError: if its inputs cannot be named.
    """
    args, kwargs = program.inputs
    if not all(isinstance(leaf, Tensor) for leaf in program.flat(args, kwargs)):
        raise ExportError("a program with inputs that are no tensors cannot be exported; trace it with tensors only")
    if kwargs and args:
        raise ExportError("a program called with both positional and named inputs cannot be exported; name all of them")
    module: nn.Module = program.module()
    if kwargs:
        module, args = _ByName(module, tuple(kwargs)), (tuple(kwargs.values()),)
    args = _fitted(program, args)
    leaves = pytree.tree_leaves(args)
    past = [leaf for leaf in leaves if leaf.dim() == 4 and leaf.is_floating_point()] if program.state else []
    plain = [str(n.target) for n in program.graph.nodes if n.op == "placeholder"][: len(leaves) - len(past)]
    names = [*plain, *cache_names(PAST, len(past) // 2)]
    with torch.no_grad():
        outputs = pytree.tree_leaves(module(*args))
    return Subject(
        module, args, tuple(names), _output_names(outputs, len(past) // 2), named_dimensions(names, args),
        _vocabulary(outputs),
    )  # fmt: skip


class _ByName(nn.Module):
    """A module with named inputs, called with a tuple of them in their order."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, inputs: tuple[Any, ...]) -> Any:
        """Call it by name."""
        return self.module(**dict(zip(self.names, inputs, strict=True)))


def _fitted(program: Program, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The example inputs in the sizes that the graph has now: a cut may have narrowed the cache."""
    leaves, spec = pytree.tree_flatten(args)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder"]
    shapes = [[size if isinstance(size, int) else None for size in n.meta["val"].shape] for n in nodes]
    fitted = [_cut(leaf, shape) for leaf, shape in zip(leaves, shapes, strict=True)]
    result: tuple[Any, ...] = pytree.tree_unflatten(fitted, spec)
    return result


def _cut(leaf: Tensor, shape: list[int | None]) -> Tensor:
    for dim, size in enumerate(shape):
        leaf = leaf if size is None else leaf.narrow(dim, 0, size)
    return leaf.contiguous()


def _output_names(outputs: list[Tensor], layers: int) -> tuple[str, ...]:
    first = len(outputs) - 2 * layers
    plain = ["logits"] if first == 1 else [f"output_{i}" for i in range(first)]
    return (*plain, *cache_names(PRESENT, layers))


def _vocabulary(outputs: list[Tensor]) -> int:
    """As many token ids as there are logits."""
    return int(outputs[0].shape[-1])
