"""Export saved models as folders for transformers: in another precision, or padded to widths of stock classes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError
from graphprune.exporters.checks.agreement import compare_closely
from graphprune.exporters.checks.reloading import Destination, reload
from graphprune.exporters.contract import (
    NO_OPTIONS,
    ExportOptions,
    ExportReport,
    ExportTarget,
    FolderVerification,
    Needs,
)
from graphprune.exporters.export_folders.export_report import require_size, source_of, write_report
from graphprune.exporters.export_folders.onnx_writer import subject_of_model
from graphprune.exporters.model_folders.folder_files import copy_companion_files, require_output
from graphprune.exporters.model_folders.folder_writer import write_settings
from graphprune.exporters.model_folders.origins import loads_with
from graphprune.exporters.subjects.decoders import is_decoder
from graphprune.exporters.subjects.subject import Feeds
from graphprune.huggingface import model_folder, per_layer
from graphprune.huggingface.meta_models import flat, on_meta
from graphprune.ir.weight_files import distinct, write_shards
from graphprune.support.atomic_output import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TYPES = {"fp32": torch.float32, "fp16": torch.float16}
_TOKENS = 24


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Write a Hugging Face folder.

    `portable` pads layers of different widths with zeros to the widest, so that the stock class loads the model without
    its own code. The outputs are those of the source, at the latency of the wider model.

    Raises:
        ExportError: if the reloaded model does not agree with the source, or `output` may not be written.
    """
    options.require("hf", dtype=tuple(TYPES), portable=(True,))
    require_output(source, output, force)
    start = time.perf_counter()
    config, model = model_folder.config(source), model_folder.module(source)
    dtype = TYPES[options.dtype] if options.dtype else config.dtype or torch.float32
    config = flat(config) if options.portable else config
    destination: Destination = "per-layer" if per_layer.is_per_layer(config) else "stock"
    with new_folder(output, force) as folder:
        copy_companion_files(source, folder)
        write_settings(folder, config, dtype, destination)
        _write_weights(folder, model, config, dtype)
        written = time.perf_counter() - start
        facts = _checked(source, folder, model.to(dtype).float(), destination)
        facts |= {"loads_with": loads_with(config, destination), "seconds": {"write": written}}
        _card(source, folder, facts)
        report = write_report(folder, source, "hf", options, facts, {})
    return replace(report, output=output)


def verify(folder: Path, report: Mapping[str, Any]) -> FolderVerification:
    """Reload a folder, and compare it with its source if the source still exists.

    Raises:
        VerificationError: if the weights have another size than its report has.
        ExportError: if it cannot be loaded, or no longer agrees.
    """
    require_size(f"{folder}: its weights take", _size(folder), report)
    config, source = model_folder.config(folder), source_of(report)
    destination: Destination = "per-layer" if per_layer.is_per_layer(config) else "stock"
    made = FolderVerification(
        folder, "huggingface", int(report.get("parameters", 0)), ["it loads with all its weights"]
    )
    if source is None:
        reload(folder, destination)
        return made
    model = model_folder.module(source).to(config.dtype or torch.float32).float()
    made.max_error = float(_checked(source, folder, model, destination)["error"]["relative"])
    made.checks.append(f"it agrees with the model in {source}")
    return made


def _write_weights(folder: Path, model: nn.Module, config: PreTrainedConfig, dtype: torch.dtype) -> None:
    target = per_layer.build_on_meta(config) if per_layer.is_per_layer(config) else on_meta(config)
    have: Mapping[str, Tensor] = model.state_dict()
    converted = {name: t.to(dtype) if t.is_floating_point() else t for name, t in distinct(target).items()}
    write_shards(folder, converted, lambda name: _padded(have[name], converted[name].shape))


def _padded(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Tensor padded with zeros at the end of every dimension that is shorter than in `shape`."""
    missing = [wide - own for own, wide in zip(tensor.shape, shape, strict=True)]
    return nn.functional.pad(tensor, [n for end in reversed(missing) for n in (0, end)])


def _checked(source: Path, folder: Path, model: nn.Module, destination: Destination) -> dict[str, Any]:
    """Reload the folder as its users do, and compare outputs, and for decoders the generated tokens.

    Raises:
        ExportError: if they differ.
    """
    again = reload(folder, destination)
    feeds = _feeds(model, source)
    with torch.no_grad():
        reloaded, reference = (_numbers(side, feeds) for side in (again, model))
    worst = compare_closely("the reloaded model", reloaded, reference, lambda: _numbers(again, feeds))
    facts: dict[str, Any] = {"parameters": _count(model), "stored_numbers": _count(again), "bytes": _size(folder)}
    facts |= {"error": {"absolute": worst.absolute, "relative": worst.relative}}
    if is_decoder(model):
        facts["tokens_compared"] = _same_tokens(again, model)
    return facts


def _numbers(model: nn.Module, feeds: Feeds) -> list[Tensor]:
    """Outputs of a model without its cache, which padding makes wider."""
    outputs = model(**feeds, use_cache=False) if is_decoder(model) else model(**feeds)
    return [value for value in outputs.values() if isinstance(value, Tensor)]


def _feeds(model: Any, source: Path) -> Feeds:
    example = subject_of_model(model, source).example()
    if not is_decoder(model):
        return example
    ids = torch.randint(
        0, model.config.get_text_config().vocab_size, (2, 7), generator=torch.Generator().manual_seed(0)
    )
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _same_tokens(again: Any, model: Any) -> int:
    """Number of equal tokens that both models generate; the end-of-text token does not stop them."""
    prompt = torch.arange(1, 5).view(1, -1)
    settings = {"max_new_tokens": _TOKENS, "min_new_tokens": _TOKENS, "do_sample": False, "use_cache": True}
    mask = torch.ones_like(prompt)
    copied, original = (side.generate(prompt, attention_mask=mask, **settings) for side in (again, model))
    if not torch.equal(copied, original):
        raise ExportError(
            f"the reloaded model writes {copied[0, 4:].tolist()} where the source writes {original[0, 4:].tolist()}; "
            "nothing was exported"
        )
    return _TOKENS


def _card(source: Path, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the model card of the source, extended by a section about this copy."""
    path = source / "README.md"
    before = path.read_text(encoding="utf-8") if path.is_file() else f"# {source.resolve().name}\n"
    zeros = facts["stored_numbers"] - facts["parameters"]
    lines = [
        "## This copy", "",
        "Written by graphprune from a saved model, reloaded and compared: the outputs differ by "
        f"{facts['error']['relative']:.1e} relative to the largest.", "", *(f"- {way}" for way in facts["loads_with"]),
    ]  # fmt: skip
    padded = f"\n\n{zeros:,} of its {facts['stored_numbers']:,} parameters are zeros that make all layers equally wide."
    (folder / "README.md").write_text(f"{before}\n{chr(10).join(lines)}{padded if zeros else ''}\n", encoding="utf-8")


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


TARGET = ExportTarget(
    export,
    Needs(
        ("stock", "per-layer"),
        8,
        8,
        "transformers runs any width; kernels on processors and GPUs need multiples of 8 to be fast",
    ),
    verify=verify,
)
