"""Writing of programs as Hugging Face folders, which transformers loads without graphprune."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters.checks.agreement import rounded
from graphprune.exporters.checks.reloading import Capture, Destination, check
from graphprune.exporters.contract import ExportReport
from graphprune.exporters.model_folders.folder_files import require_apart, write_config
from graphprune.exporters.model_folders.module_folders import embedding_indices, follow_width
from graphprune.exporters.model_folders.origins import Origin, loads_with
from graphprune.huggingface import per_layer
from graphprune.huggingface.config_biases import with_parameters
from graphprune.huggingface.config_epsilons import literals_after, with_epsilons
from graphprune.huggingface.config_widths import fit
from graphprune.huggingface.meta_models import describe, flat, on_meta, stock_class
from graphprune.ir import weight_files
from graphprune.ir.program import Program
from graphprune.support.atomic_output import new_folder
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def save(
    program: Program, output: Path, *, destination: Destination, force: bool = False, limit: int | None = None,
    shard_bytes: int = weight_files.MAX_SHARD_BYTES, capture: Capture | None = None,
) -> ExportReport:  # fmt: skip
    """Save a program as a Hugging Face folder, which appears once its reloaded model agrees; see `write`.

    Raises:
        ExportError: if no config has its widths, the reloaded model differs, or `output` may not be written.
    """
    if (source := Origin.of(program).folder) is not None:
        require_apart(source, output)
    with new_folder(output, force) as folder:
        report = write(program, folder, destination=destination, limit=limit, shard_bytes=shard_bytes, capture=capture)
    return ExportReport(report.target, output, report.files, report.facts)


def write(
    program: Program, folder: Path, *, destination: Destination, limit: int | None = None,
    shard_bytes: int = weight_files.MAX_SHARD_BYTES, capture: Capture | None = None,
) -> ExportReport:  # fmt: skip
    """Fill an empty folder with the program and check it; for callers that add files before it gets its final name.

    Weights are written one at a time, into files of at most `shard_bytes`. If the model takes more than `limit` bytes
    in float32, it is checked in parts, read again by `capture`; the report records that.

    Raises:
        ExportError: as `save`.
    """
    origin, start = Origin.of(program), time.perf_counter()
    config = _fitted(program, origin, destination)
    destination = "per-layer" if per_layer.is_per_layer(config) else "stock"
    origin.copy_files(folder)
    width = getattr(origin.settings, "hidden_size", None)
    follow_width(folder, width, getattr(config, "hidden_size", None), embedding_indices(program, width))
    model = _skeleton(config, destination)
    write_settings(folder, config, origin.dtype, destination)
    stored = _write_weights(program, folder, model, origin, shard_bytes)
    written = time.perf_counter()
    reference = rounded(program, origin.dtype, stored)
    result = check(reference, folder, lambda saved: origin.reload(saved, destination), limit=limit, capture=capture)
    facts = {
        "destination": destination,
        "error": {"absolute": result.error.absolute, "relative": result.error.relative},
        "compared": result.compared,
        "check": result.how,
        "seconds": {"write": written - start, "verify": time.perf_counter() - written},
        "loads_with": loads_with(config, destination),
    }
    return ExportReport("huggingface", folder, sorted(path.name for path in folder.iterdir()), facts)


def _fitted(program: Program, origin: Origin, destination: Destination) -> PreTrainedConfig:
    config = origin.settings
    names = describe(on_meta(flat(config))).shapes
    if unknown := {name.removeprefix(origin.prefix) for name in program.parameters} - names.keys():
        try:
            config = with_parameters(flat(config), unknown)
        except ExportError as fault:
            raise ExportError(f"{fault}; the program is not a version of {origin.name}") from fault
    config = with_epsilons(config, literals_after(program))
    shapes = {name.removeprefix(origin.prefix): shape for name, shape in program.shapes().items()}
    return fit(config, shapes) if destination == "stock" else per_layer.fit_layers(config, shapes)


def _skeleton(config: PreTrainedConfig, destination: Destination) -> PreTrainedModel:
    return on_meta(config) if destination == "stock" else per_layer.build_on_meta(config)


def write_settings(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, destination: Destination) -> None:
    """Write config.json, and the code file of a per-layer config."""
    kind = stock_class(config)
    code = per_layer.code(config) if destination == "per-layer" else ""
    extra = {"auto_map": per_layer.references(config)} if code else {}
    fitted, config = config, copy.deepcopy(config)
    config.architectures = [kind.__name__]
    if getattr(kind, "_auto_class", None):
        target: Any = config  # it gets an auto_map
        transformers.dynamic_module_utils.custom_object_save(on_meta(flat(fitted)), folder, target)
    write_config(folder, config, dtype, **extra)
    if not code:
        return
    (folder / per_layer.FILE).write_text(code, encoding="utf-8")


def _write_weights(
    program: Program, folder: Path, model: PreTrainedModel, origin: Origin, shard_bytes: int
) -> set[str]:
    """Write every saved tensor once, tied ones under one name; return their names in the program."""
    state: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    groups = weight_files.aliases(model)
    names = {group[0]: _stored(program, [f"{origin.prefix}{name}" for name in group]) for group in groups}
    skeleton = {name: _typed(state[name], origin.dtype) for name in names}

    def read(name: str) -> Tensor:
        tensor = program.weights[names[name]].to(skeleton[name].dtype)
        if names[name] in program.parameters:
            _require_finite(name, tensor)
        return tensor

    weight_files.write_shards(folder, skeleton, read, limit=shard_bytes)
    return set(names.values())


def _require_finite(name: str, tensor: Tensor) -> None:
    """Raise if the tensor has NaN or infinity, which example inputs may not reach, such as an unused embedding."""
    values = tensor if tensor.itemsize > 1 else tensor.float()
    if values.is_floating_point() and values.numel() and not torch.stack(values.aminmax()).isfinite().all():
        raise ExportError(
            f"{name} holds NaN or infinity as {str(tensor.dtype).removeprefix('torch.')}; nothing was saved. Its file "
            "may be damaged, or a number may be too large for this type"
        )


def _stored(program: Program, group: list[str]) -> str:
    for name in group:
        if program.name(name) in program.weights:
            return program.name(name)
    raise ExportError(f"the program has no weight {group[0]}, which the class of the saved model needs")


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
