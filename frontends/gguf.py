"""A GGUF file is converted once into a Hugging Face folder and loaded from there."""

import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from graphprune import cache
from graphprune.errors import LoadError
from graphprune.frontends import FRONTENDS, Frontend, huggingface
from graphprune.program import Program

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
    """The Hugging Face folder with the model, tokenizer and generation settings of a GGUF file.

    Raises:
        LoadError: if the file is missing or corrupt, or transformers cannot convert its architecture.
    """
    file = Path(file)
    _check(file)

    def convert(target: Path) -> None:
        log.info("%s: dequantising into %s, once", file, target.parent)
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
    where = str(file.parent)
    only: Any = {"gguf_file": file.name, "local_files_only": True}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **only)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **only)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as fault:  # a panic of the tokenizers library is no Exception
        raise LoadError(
            f"{file} ({file.stat().st_size} bytes) is truncated, corrupt or of an architecture that transformers "
            f"cannot convert: {fault}; download it again, or convert it with other tools to a Hugging Face folder"
        ) from fault
    _forget_quantisation(model)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _forget_quantisation(model: Any) -> None:
    """Clear the marks by which transformers takes the model for a quantised one and refuses to save it."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False


def _is_gguf(text: str) -> bool:
    return text.lower().endswith(".gguf")


FRONTENDS.register("gguf")(Frontend("a .gguf file", _is_gguf, load))
