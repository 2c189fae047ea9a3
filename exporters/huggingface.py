"""Programs as Hugging Face folders, which transformers loads without graphprune."""

import gc
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from graphprune import hf, per_layer
from graphprune.atomic import new_folder
from graphprune.config_biases import with_parameters
from graphprune.config_widths import fit
from graphprune.contracts import ExportReport
from graphprune.errors import ExportError
from graphprune.exporters.agreement import Error, compare, numbers, rounded
from graphprune.exporters.folders import copy_beside, require_apart, write_config
from graphprune.exporters.shards import aliases, write_shards
from graphprune.meta_models import auto_class, describe, flat, on_meta, stock_class
from graphprune.program import Program, Source

Destination = Literal["stock", "per-layer"]


def save(program: Program, output: Path, *, destination: Destination, force: bool = False) -> ExportReport:
    """Save a program as a Hugging Face folder, which appears when it was reloaded and agrees.

    Raises:
        ExportError: if no config has its widths, the reloaded model differs, or `output` may not be written.
    """
    require_apart(_source(program).path, output)
    with new_folder(output, force) as folder:
        report = write(program, folder, destination=destination)
    return ExportReport(report.target, output, report.files, report.facts)


def write(program: Program, folder: Path, *, destination: Destination) -> ExportReport:
    """Fill an empty folder with the program and check it; for callers that add files before it gets its name.

    Raises:
        ExportError: as `save`.
    """
    source, start = _source(program), time.perf_counter()
    config = _fitted(program, source, destination)
    destination = "per-layer" if per_layer.is_per_layer(config) else "stock"
    try:
        copy_beside(source.path, folder)
        write_settings(folder, config, source.dtype, destination)
        _write_weights(program, folder, _skeleton(config, destination), source.dtype)
    except OSError as fault:
        raise ExportError(f"{folder.parent} cannot be written: {fault}") from fault
    written = time.perf_counter()
    worst = check(program, folder, destination=destination)
    facts = {
        "destination": destination,
        "error": {"absolute": worst.absolute, "relative": worst.relative},
        "seconds": {"write": written - start, "verify": time.perf_counter() - written},
        "loads_with": loads_with(config, destination),
    }
    return ExportReport("huggingface", folder, sorted(path.name for path in folder.iterdir()), facts)


def loads_with(config: PreTrainedConfig, destination: Destination) -> list[str]:
    """The calls that load such a folder."""
    name = auto_class(config).__name__
    if destination == "stock":
        return [f"transformers.{name}.from_pretrained(folder)"]
    return ["graphprune.load(folder)", f"transformers.{name}.from_pretrained(folder, trust_remote_code=True)"]


def check(program: Program, folder: Path, *, destination: Destination) -> Error:
    """Reload a saved folder and compare it with the program on the program's example inputs.

    Raises:
        ExportError: if it cannot be loaded, weights are missing, or the outputs differ.
    """
    args, kwargs = program.inputs
    with torch.no_grad():
        reference = [t.clone() for t in numbers(rounded(program, _source(program).dtype).module()(*args, **kwargs))]
        gc.collect()
        model = reload(folder, destination)
        found = numbers(model(*args, **kwargs))
    return compare("the reloaded model", found[: len(reference)], reference)


def reload(folder: Path, destination: Destination) -> nn.Module:
    """The saved model as its users load it, in float32.

    Raises:
        ExportError: if it cannot be loaded, or weights are missing.
    """
    config = hf.config(folder)
    config.use_cache = False
    loader: Any = auto_class(config) if destination == "stock" else per_layer.model_class(stock_class(config))
    try:
        model, found = loader.from_pretrained(
            str(folder), config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (RuntimeError, ValueError, KeyError, OSError) as fault:
        raise ExportError(f"the saved folder cannot be loaded again: {fault}") from fault
    if absent := sorted(found["missing_keys"]) or sorted(map(str, found["mismatched_keys"])):
        raise ExportError(
            f"the saved folder lacks {len(absent)} weights that {type(model).__name__} has, the first {absent[0]}"
        )
    loaded: nn.Module = model.eval()
    return loaded


def _source(program: Program) -> Source:
    source = program.source
    if source is None or source.kind != "huggingface":
        raise ExportError(
            "the program does not come from a Hugging Face folder, so there is no config to save it with; "
            "use destination free, which saves a .pt2 file"
        )
    if not (source.path / hf.CONFIG).is_file():
        raise ExportError(f"{source.path / hf.CONFIG}, from which the program was made, is gone; restore the folder")
    return source


def _fitted(program: Program, source: Source, destination: Destination) -> PreTrainedConfig:
    config = hf.settings(source)
    names = describe(on_meta(flat(config))).shapes
    if unknown := program.parameters - names.keys():
        try:
            config = with_parameters(flat(config), unknown)
        except ExportError as fault:
            raise ExportError(f"{fault}; the program is not of the model in {source.path}") from fault
    shapes = program.shapes()
    return fit(config, shapes) if destination == "stock" else per_layer.fit_layers(config, shapes)


def _skeleton(config: PreTrainedConfig, destination: Destination) -> PreTrainedModel:
    return on_meta(config) if destination == "stock" else per_layer.build_on_meta(config)


def write_settings(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, destination: Destination) -> None:
    """Write config.json, and the code file of layers that differ."""
    if destination == "stock":
        write_config(folder, config, dtype)
        return
    write_config(folder, config, dtype, auto_map={auto_class(config).__name__: per_layer.reference(config)})
    (folder / per_layer.FILE).write_text(per_layer.code(config), encoding="utf-8")


def _write_weights(program: Program, folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Every saved tensor once: what the class ties is stored under one of its names."""
    state: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    names = {group[0]: _stored(program, group) for group in aliases(model)}
    skeleton = {name: _typed(state[name], dtype) for name in names}

    def read(name: str) -> Tensor:
        tensor = program.weights[names[name]]
        if tensor.shape != state[name].shape:
            raise ExportError(f"{name} has shape {tuple(tensor.shape)}, its class expects {tuple(state[name].shape)}")
        return tensor

    write_shards(folder, skeleton, read)


def _stored(program: Program, group: list[str]) -> str:
    for name in group:
        if program.name(name) in program.weights:
            return program.name(name)
    raise ExportError(f"the program has no weight {group[0]}, which the saved class needs")


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
