"""Options for where a model comes from; this file imports no torch, so that help texts are shown at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from graphprune.workflows.option_fields import OptionGroup, option

PathLike = str | Path
MODEL = (
    "A Hugging Face folder, a model of the hub (org/name, or org/name/file.onnx), a .gguf, .onnx or .pt2 file, or "
    "package.module:callable that returns (module, args, kwargs)."
)
REVISION = "The branch, tag or commit of a model of the hub; main by default."
OFFLINE = "Read a model of the hub from the local cache only, as with HF_HUB_OFFLINE=1."


@dataclass(frozen=True, kw_only=True)
class OnnxFile(OptionGroup):
    """Options for a model in an ONNX file."""

    title: ClassVar[str] = "An ONNX file"
    tokenizer: PathLike | None = option(
        None, "Folder of the tokenizer for texts, where it is not next to the file.", metavar="DIR"
    )
    sizes: Mapping[str, int] | None = option(
        None,
        "Sizes of dynamic dimensions of the inputs, by their names, at which the file runs.",
        metavar="NAME=N,...",
        least=1,
    )
    dequantize: bool = option(False, "Take quantized weights as floating-point numbers.")


@dataclass(frozen=True, kw_only=True)
class HubSource(OptionGroup):
    """Options for a model of the hub."""

    title: ClassVar[str] = "A model of the hub"
    revision: str | None = option(None, REVISION, metavar="REV")
    offline: bool = option(False, OFFLINE, flags="--offline", outcome=False)


@dataclass(frozen=True, kw_only=True)
class AdapterFolder(OptionGroup):
    """Option for a folder with an adapter (LoRA)."""

    title: ClassVar[str] = "An adapter"
    merge_adapters: bool = option(
        False,
        "The folder holds a low-rank adapter (LoRA): add it to its model first, which is in the same folder, or where "
        "the configuration of the adapter names it.",
    )
