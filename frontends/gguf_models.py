"""Load GGUF files: each is converted once into a Hugging Face folder and loaded from there."""

import logging
from pathlib import Path
from typing import Any

import torch

from graphprune.errors import LoadError, because
from graphprune.frontends import FRONTENDS, Frontend, gguf_weights, huggingface
from graphprune.ir.program import Program
from graphprune.support import cache
from graphprune.support.atomic_output import UNWRITABLE
from graphprune.support.packages import failed_import, transformers

log = logging.getLogger(__name__)

MAGIC = b"GGUF"


def load(file: Path | str) -> Program:
    """Capture the model of a GGUF file; its weights are read from a float32 copy that is made once.

    Raises:
        LoadError: if the file is missing or corrupt, or transformers cannot convert its architecture.
        TraceError: if torch.export refuses the model.
    """
    return huggingface.load(folder(file))


def folder(file: Path | str) -> Path:
    """Hugging Face folder with the model, tokenizer and generation settings of a GGUF file.

    Raises:
        LoadError: if the file is missing or corrupt, or transformers cannot convert its architecture.
    """
    file = Path(file)
    _check(file)

    def convert(target: Path) -> None:
        log.info("%s: dequantizing into %s, once", file, target.parent)
        _convert(file, target)

    return cache.once("gguf", [file], convert)


def _check(file: Path) -> None:
    if not file.is_file():
        raise LoadError(f"{file} does not exist, expected a GGUF file")
    with file.open("rb") as opened:
        start = opened.read(len(MAGIC))
    if start != MAGIC:
        raise LoadError(f"{file} starts with {start!r}, expected {MAGIC!r}: it is no GGUF file; download it again")


def _convert(file: Path, target: Path) -> None:
    only: Any = {"gguf_file": file.name, "local_files_only": True}
    try:
        _write(file, target, only)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), **only)
    except (KeyboardInterrupt, SystemExit):
        raise
    except OSError as fault:
        if fault.errno in UNWRITABLE:
            raise
        raise _unreadable(file, fault) from fault
    except BaseException as fault:  # a panic of the tokenizers library is no Exception
        raise failed_import(fault, "transformers") or _unreadable(file, fault) from fault
    tokenizer.save_pretrained(target)


def _unreadable(file: Path, fault: BaseException) -> LoadError:
    return LoadError(
        f"{file} ({file.stat().st_size} bytes) is truncated, corrupt or of an architecture that transformers "
        f"cannot convert{because(fault)}; download it again, or convert it with other tools to a Hugging Face folder"
    )


def _write(file: Path, target: Path, only: Any) -> None:
    """Write the model one tensor at a time, or as a whole where that is impossible."""
    try:
        gguf_weights.write(file, target)
    except gguf_weights.NotByName as why:
        log.warning("%s: %s, so all its weights are held in memory while it is converted", file, why)
        _write_whole(file, target, only)


def _write_whole(file: Path, target: Path, only: Any) -> None:
    """Convert the model by loading and saving it with transformers."""
    auto: Any = transformers.AutoModelForCausalLM
    model, loading = auto.from_pretrained(str(file.parent), dtype=torch.float32, output_loading_info=True, **only)
    if missing := sorted(loading["missing_keys"]):  # transformers fills these with random numbers
        raise LoadError(f"it holds no {missing[0]}")
    _clear_quantization(model)
    model.save_pretrained(target)


def _clear_quantization(model: Any) -> None:
    """Clear the attributes that mark the model as quantized, for which transformers refuses to save it."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False


def _is_gguf(text: str) -> bool:
    return text.lower().endswith(".gguf")


FRONTENDS.register("gguf")(Frontend("a .gguf file", _is_gguf, load))
