"""Folder of a healed model: that of the pruned one with other weights, checked by loading it again."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from graphprune.errors import ExportError, LoadError, because
from graphprune.exporters.checks.agreement import compare, compare_closely, numbers
from graphprune.exporters.checks.generation import Decoder, open_decoder
from graphprune.exporters.checks.reloading import reload
from graphprune.exporters.onnx_tools.onnx_files import MODEL
from graphprune.exporters.onnx_tools.onnx_subjects import ONNX_FOLDER, input_names
from graphprune.exporters.onnx_tools.onnx_weights import copy_with_weights, require_known
from graphprune.exporters.subjects.subject import PAST
from graphprune.exporters.targets import onnx, pt2
from graphprune.frontends import checkpoints
from graphprune.frontends.loading import load
from graphprune.healing.models import LoadedModel
from graphprune.huggingface import model_folder, per_layer
from graphprune.ir import weight_files
from graphprune.ir.program import Inputs, Program
from graphprune.ir.weights import Layered
from graphprune.reports.report import FILE as REPORT
from graphprune.reports.report import PAGE
from graphprune.statistics.collector import token_inputs

_WRITTEN_ANEW = (REPORT, PAGE, "README.md")


def write_healed(pruned: LoadedModel, folder: Path, inputs: Inputs) -> dict[str, float]:
    """Fill a folder with the files of the pruned model and its trained weights; return the errors of comparisons.

    `inputs` are those of a call, on which the reloaded folder is compared with the trained model.

    Raises:
        ExportError: if the folder cannot hold the weights, or the reloaded model differs.
    """
    if pruned.program is not None:
        return _write_graph(pruned, pruned.program, folder)
    _require_finite(pruned.module)
    _copy(pruned.folder, folder, {file.name for file in model_folder.weight_files(pruned.folder)})
    _write_weights(pruned, folder)
    return {"reloaded folder and trained model": _reloaded_error(pruned.module, folder, inputs)}


def require_storable(pruned: LoadedModel) -> None:
    """Check before a training that the files of the pruned model can hold other weights.

    Raises:
        ExportError: if they cannot.
        LoadError: if they hold quantized numbers, or cannot be read.
    """
    for path in _companions(pruned.folder, set()):
        if not os.access(path, os.R_OK):
            raise LoadError(f"{path}, which the healed folder is to hold, too, may not be read; change its permissions")
    if pruned.program is None:
        checkpoints.check_types(pruned.folder, pruned.module, _matched(pruned))
        return
    files, program = pruned.folder / ONNX_FOLDER, pruned.program
    if not files.is_dir() or not _has_cache(files):
        return
    used = {program.name(str(node.target)) for node in program.tensors()} & program.parameters
    try:
        require_known(files, {name: program.weights[name] for name in used})
    except ExportError as fault:
        raise ExportError(
            f"{files} cannot get new weights{because(fault)}; move it away, and heal the folder without it"
        ) from fault


def _matched(pruned: LoadedModel) -> dict[str, checkpoints.Entry]:
    """Stored entries by name of the weight.

    Raises:
        ExportError: if a parameter is stored in another form.
    """
    matched = checkpoints.match(pruned.module, checkpoints.entries(pruned.folder))
    state = pruned.module.state_dict(keep_vars=True)
    held = {id(state[name]) for name in matched}
    if lost := [name for name, weight in pruned.module.named_parameters() if id(weight) not in held]:
        raise ExportError(
            f"{pruned.folder} stores {lost[0]} in another form than the class of the model has it; save the folder "
            "with graphprune first (graphprune.save), then heal that"
        )
    return matched


def _companions(source: Path, skipped: set[str]) -> list[Path]:
    """Files and folders to copy: all except hidden ones, `skipped` ones, what is written anew, and links to nothing."""
    left = {*_WRITTEN_ANEW, *skipped, "__pycache__"}
    return [
        path
        for path in sorted(source.iterdir())
        if path.name not in left and not path.name.startswith(".") and (path.is_dir() or path.is_file())
    ]


def _copy(source: Path, folder: Path, skipped: set[str]) -> None:
    """Copy what accompanies the weights."""
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    for path in _companions(source, skipped):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=ignored, ignore_dangling_symlinks=True)
        else:
            shutil.copyfile(path, folder / path.name)


def _write_weights(pruned: LoadedModel, folder: Path) -> None:
    """Write the files of weights with the names, types and division of those of the pruned model."""
    stored = checkpoints.entries(pruned.folder)
    state = pruned.module.state_dict(keep_vars=True)
    names = {entry.key: name for name, entry in _matched(pruned).items()}
    for file in model_folder.weight_files(pruned.folder):
        keys = {key: entry for key, entry in stored.items() if entry.path == file}
        with safe_open(file, framework="pt") as source:

            def read(key: str, source: Any = source) -> Tensor:
                tensor: Tensor = state[names[key]] if key in names else source.get_tensor(key)
                return tensor

            skeleton = {key: _empty(entry) for key, entry in keys.items()}
            weight_files.write_file(folder / file.name, skeleton, read)


def _empty(entry: checkpoints.Entry) -> Tensor:
    """Tensor of the shape and type of a stored one, without memory."""
    types = {name: dtype for dtype, name in weight_files.DTYPE_NAMES.items()}
    return torch.empty(entry.shape, dtype=types[entry.dtype], device="meta")


def _require_finite(module: nn.Module) -> None:
    for name, weight in module.named_parameters():
        if not bool(weight.isfinite().all()):
            raise ExportError(f"{name} holds NaN or infinity after the training; choose a lower rate")


def _reloaded_error(module: nn.Module, folder: Path, inputs: Inputs) -> float:
    """Error of the reloaded folder relative to the trained model, with weights rounded as in the files."""
    settings = model_folder.config(folder)
    reloaded = reload(folder, "per-layer" if per_layer.is_per_layer(settings) else "stock")
    module = _rounded(module, checkpoints.stored_dtype(checkpoints.entries(folder)))
    args, kwargs = inputs
    with torch.no_grad():
        expected = numbers(module(*args, **kwargs))
        got = numbers(reloaded(*args, **kwargs))
        return compare_closely(
            "the reloaded folder", got, expected, lambda: numbers(reloaded(*args, **kwargs))[: len(expected)]
        ).relative


def _rounded(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy of a module in evaluation mode with weights rounded to a type; the module itself for float32."""
    if dtype == torch.float32:
        return module.eval()
    rounded = copy.deepcopy(module).eval()
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.copy_(weight.to(dtype))
    return rounded


def _write_graph(pruned: LoadedModel, program: Program, folder: Path) -> dict[str, float]:
    """Write a folder that holds the graph, and its ONNX files; those with a cache get the new weights in place."""
    _copy(pruned.folder, folder, {model_folder.PROGRAM, ONNX_FOLDER})
    _require_finite(pruned.module)
    healed = with_weights(program, pruned.module)
    report = pt2.write(healed, folder / model_folder.PROGRAM)
    errors = {"reloaded .pt2 and trained graph": float(report.facts["error"]["relative"])}
    if not (pruned.folder / ONNX_FOLDER).is_dir():
        return errors
    if not _has_cache(pruned.folder / ONNX_FOLDER):
        exported = onnx.export_program(healed, folder / ONNX_FOLDER)
        return {**errors, "ONNX and graph": max(float(case["worst"]) for case in exported.facts["parity"].values())}
    before = load(pruned.folder).weights  # the training has changed those of the program
    weights = {name: (before[name], healed.weights[name]) for name in program.parameters - program.ties.keys()}
    copy_with_weights(pruned.folder / ONNX_FOLDER, folder / ONNX_FOLDER, weights)
    return {**errors, "ONNX and trained graph": _cached_error(healed, folder / ONNX_FOLDER)}


def _cached_error(program: Program, folder: Path) -> float:
    """Error of the logits of an ONNX decoder at the start of a text, relative to those of the graph."""
    decoder, ids = Decoder(open_decoder(folder)), program.inputs[1]["input_ids"][:1]
    with torch.no_grad():
        expected = numbers(program.module()(**token_inputs(program, ids)))[:1]
    return compare("the ONNX file with new weights", [decoder.step(ids, 0, decoder.empty())[0]], expected).relative


def with_weights(program: Program, module: nn.Module) -> Program:
    """Program with the weights of its trained module."""
    trained = {program.name(name): weight.detach() for name, weight in module.named_parameters(remove_duplicate=False)}
    trained |= {program.name(name): buffer.detach() for name, buffer in module.named_buffers(remove_duplicate=False)}
    known = {name: trained[name] for name in program.shapes() if name in trained}
    return program.with_facts(weights=Layered((known, program.weights)))


def _has_cache(folder: Path) -> bool:
    return any(name.startswith(PAST) for name in input_names(folder / MODEL))
