"""Export models for onnxruntime-web and transformers.js: files that a browser can fetch and hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from graphprune.errors import ExportError, VerificationError
from graphprune.exporters.checks import web_cases
from graphprune.exporters.checks.generation import end_tokens
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, ExportTarget, Needs
from graphprune.exporters.export_folders.onnx_writer import SUPPORTED, OnnxTarget, subject_of, write
from graphprune.exporters.model_folders.folder_files import require_output
from graphprune.exporters.onnx_tools.onnx_files import MODEL, SINGLE_FILE_BYTES, model_file, save_onnx, stored_bytes
from graphprune.exporters.onnx_tools.sessions import OnnxRunner, open_in_floats
from graphprune.exporters.subjects.subject import Subject
from graphprune.huggingface import model_folder
from graphprune.support.packages import onnx_ir as ir

MANIFEST, CASES = "web.json", "cases.json"

_SMALL = 1000  # bytes of a weight that is stored in the graph, as it may be a shape
_PART = 500_000_000  # bytes of a file of weights: more than 512 MB is not cached by content networks
_BUFFER = 2_000_000_000  # bytes of the largest ArrayBuffer that all browsers give

_SLOW = "weights in fewer bits are for WebGPU; for wasm, which computes with floats faster, export with --portable"

#: Names of precisions in transformers.js, and the suffix of the file ``onnx/model{suffix}.onnx`` that belongs to each.
_NAMES = {
    ("none", "fp32"): ("fp32", ""), ("none", "fp16"): ("fp16", "_fp16"),
    ("int8", "fp32"): ("q8", "_quantized"), ("int8", "fp16"): ("q8", "_quantized"),
    ("int4", "fp32"): ("q4", "_q4"), ("int4", "fp16"): ("q4f16", "_q4f16"),
}  # fmt: skip


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the model of a Hugging Face folder in the layout of transformers.js, with a manifest and cases to check.

    Quantized weights are for WebGPU. With `portable` they become floats when a page opens the model: the download is as
    small, takes more memory, and is several times faster in wasm.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, a weight is larger than a
            browser can hold, or `output` may not be written.
    """
    options.require("web", **SUPPORTED, portable=(True,))
    require_output(source, output, force)
    subject = subject_of(source, options)
    target = OnnxTarget("web", partial(_laid_out, subject=subject, source=source, options=options))
    return write(subject, source, output, target, options, force=force)


def _laid_out(model: ir.Model, folder: Path, subject: Subject, source: Path, options: ExportOptions) -> dict[str, Any]:
    """Move the model to the layout of transformers.js, and write the manifest and the test cases."""
    name, suffix = _NAMES[options.quant, options.dtype or "fp32"]
    path = folder / "onnx" / f"model{suffix}.onnx"
    path.parent.mkdir()
    parts = save_parts(model, path)
    for old in folder.glob(f"{MODEL}*"):
        old.unlink()
    runner = open_in_floats(path)
    _write(folder / MANIFEST, manifest(folder, path, parts, runner, end_tokens(source)))
    _write(folder / CASES, web_cases.cases_of(subject, runner, options), indent=None)
    before = model_folder.read_json(source / model_folder.CONFIG) if (source / model_folder.CONFIG).is_file() else {}
    config = {**before, "transformers.js_config": _settings(name, path, parts, options)}
    _write(folder / model_folder.CONFIG, config)
    slow = options.quant != "none" and not options.portable
    return {"notes": [f"laid out for transformers.js, as {name}", *([_SLOW] if slow else [])]}


def save_parts(model: ir.Model, path: Path) -> list[Path]:
    """Write a model, with large weights in separate files that a browser can fetch; `model` then refers to those files.

    Raises:
        ExportError: if one weight is larger than a browser can hold, or the checker of onnx finds a fault.
    """
    values: list[Any] = [value for graph in model.graphs() for value in graph.initializers.values()]
    weights = [value for value in values if value.const_value is not None and value.const_value.nbytes > _SMALL]
    for value in weights:
        if value.const_value.nbytes > _BUFFER:
            raise ExportError(
                f"{value.name} takes {value.const_value.nbytes} bytes, a browser holds {_BUFFER} in one piece; use "
                "--dtype fp16 or --quant int8"
            )
    parts = []
    if sum(value.const_value.nbytes for value in weights) > SINGLE_FILE_BYTES:
        for number, group in enumerate(_grouped(weights)):
            parts.append(path.with_name(f"{path.name}_data{f'_{number}' if number else ''}"))
            tensors = [value.const_value for value in group]
            external = ir.external_data.convert_tensors_to_external(tensors, path.parent, parts[-1].name)
            for value, tensor in zip(group, external, strict=True):
                value.const_value = tensor
    save_onnx(model, path.parent, path.name)
    return parts


def _grouped(values: list[Any]) -> Iterator[list[Any]]:
    """Groups of weights in their order, each as large as a file may be; a larger weight is a group by itself."""
    group: list[Any] = []
    size = 0
    for value in values:
        if group and size + value.const_value.nbytes > _PART:
            yield group
            group, size = [], 0
        group.append(value)
        size += value.const_value.nbytes
    yield group


def manifest(folder: Path, path: Path, parts: list[Path], runner: OnnxRunner, ends: set[int]) -> dict[str, Any]:
    """Manifest for a page that calls the model: files, inputs and outputs; dynamic sizes are names."""
    sides = {"inputs": runner.session.get_inputs(), "outputs": runner.session.get_outputs()}
    named = {
        side: {value.name: {"type": web_cases.type_of(value), "shape": value.shape} for value in values}
        for side, values in sides.items()
    }
    return {
        "model": path.relative_to(folder).as_posix(),
        "bytes": path.stat().st_size,
        "external_data": [
            {"path": part.name, "file": part.relative_to(folder).as_posix(), "bytes": part.stat().st_size}
            for part in parts
        ],
        **named,
        "eos_token_ids": sorted(ends),
    }


def _settings(name: str, path: Path, parts: list[Path], options: ExportOptions) -> dict[str, Any]:
    """Settings of transformers.js in config.json: precision, number of weight files, and type of the cache."""
    settings: dict[str, Any] = {"dtype": name}
    if options.dtype == "fp16":
        settings["kv_cache_dtype"] = {name: "float16"}
    if parts:
        settings["use_external_data_format"] = {path.name: len(parts)}
    return settings


def _write(path: Path, table: dict[str, Any], indent: int | None = 2) -> None:
    path.write_text(json.dumps(table, indent=indent) + "\n", encoding="utf-8")


def check(folder: Path) -> list[str]:
    """Check that the files are those of the manifest, and that the stored cases still give their outputs.

    Raises:
        VerificationError: if a file is missing or has another size, or an output is another.
    """
    table, path = model_folder.read_json(folder / MANIFEST), model_file(folder)
    assert path is not None  # a checked folder has one
    files = {table["model"]: table["bytes"]} | {part["file"]: part["bytes"] for part in table["external_data"]}
    for name, size in files.items():
        actual = (folder / name).stat().st_size if (folder / name).is_file() else None
        if actual != size:
            raise VerificationError(f"{folder / name} has {actual} bytes, {MANIFEST} expects {size}: export again")
    if sum(files.values()) != stored_bytes(path):
        raise VerificationError(f"{path.parent} holds weights that {MANIFEST} does not name: export again")
    worst = web_cases.check(model_folder.read_json(folder / CASES), open_in_floats(path))
    return [f"{MANIFEST} names all files", f"the stored cases come out, within {worst:.0e}"]


TARGET = ExportTarget(
    export,
    Needs(
        ("per-layer", "stock", "free"),
        32,
        8,
        "wasm runs any width; blocks of stored weights hold 32, its vectors 8",
    ),
    check=check,
)
