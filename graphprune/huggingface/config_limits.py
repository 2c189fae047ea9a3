"""Limits of configurations from a folder: nothing is fetched or imported for them, and sizes are those of a model.

A configuration may name a kernel of the hub as its implementation of attention or experts, a backbone to download, or
sizes for which the skeleton of the model alone takes hours.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from graphprune.errors import LoadError

MAX_SIZE = 2**24
MAX_VOCABULARY = 2**28
MAX_LENGTH = 2**40  # positions, windows and the like, of which no tensor is made
MAX_EXPERTS = 2**16
MAX_LAYERS = 4_096
MAX_VALUES = 1_000_000
MAX_DEPTH = 20

#: Implementations that are part of torch and transformers.
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
_REQUIRED_WHOLE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "d_model",
    "num_key_value_heads", "n_layer", "n_head", "n_embd",
)  # fmt: skip
_LAYERS = ("layers", "blocks", "n_layer", "depth", "depths")
_LENGTHS = ("length", "positions", "embeddings", "window", "n_ctx", "tokens", "bytes", "seq_len", "total_size")
_SIZES = ("size", "dim", "width", "channels", "heads", "head", "groups", "rank", "embd", "inner", "d_model", "d_ff")


def require_harmless(table: Mapping[str, Any], file: Path) -> None:
    """Refuse a configuration that makes transformers fetch or import something, or claims absurd sizes.

    Raises:
        LoadError: if a field does; the message names it.
    """
    for count, (path, value) in enumerate(_fields(table, file)):
        if count > MAX_VALUES:
            raise LoadError(f"{file} has more than {MAX_VALUES:,} values, expected the configuration of a model")
        name = path.rpartition(".")[2].partition("[")[0]
        if problem := _fetches(name, value) or _is_no_size(name, value):
            raise LoadError(f"{file}: {path} is {str(value)[:60]!r}, {problem}")


@contextmanager
def offline() -> Iterator[None]:
    """Nothing is fetched from the hub in this context, whatever a folder names."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _fields(table: Any, file: Path) -> Iterator[tuple[str, Any]]:
    """Every value inside a configuration and its path."""
    level: list[tuple[str, Any]] = [("", table)]
    for _ in range(MAX_DEPTH):
        inner: list[tuple[str, Any]] = []
        for at, item in level:
            yield at, item
            if isinstance(item, Mapping):
                inner += [(f"{at}.{key}".lstrip("."), part) for key, part in item.items()]
            elif isinstance(item, list):
                inner += [(f"{at}[{i}]", part) for i, part in enumerate(item)]
        level = inner
    if level:
        raise LoadError(f"{file}: {level[0][0][:60]} is nested more than {MAX_DEPTH} levels deep")


def _fetches(name: str, value: Any) -> str:
    """The reason why a field makes transformers fetch or import something that is no part of it."""
    if name.endswith(("attn_implementation", "experts_implementation", "_implementation_internal")):
        named = value.values() if isinstance(value, dict) else [value]
        if any(one is not None and one not in IMPLEMENTATIONS for one in named):
            return f"which may be fetched or imported; expected one of {', '.join(IMPLEMENTATIONS)}"
    if name in ("use_pretrained_backbone", "use_timm_backbone", "use_kernels") and value not in (None, False):
        return "for which weights or code are fetched or imported; set it to false"
    if name == "backbone" and isinstance(value, str):
        return "a backbone that is fetched by its name; save the model with a backbone_config"
    return ""


def _is_no_size(name: str, value: Any) -> str:
    """The reason why a value is no size of a model."""
    if name in _REQUIRED_WHOLE and not _is_whole(value):
        return "expected a whole number of at least 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    limit = _limit(name)
    return f"expected at most {limit:,}" if limit is not None and value > limit else ""


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number of at least 0, absent, or a list or object of them."""
    if isinstance(value, list | dict):
        return all(map(_is_whole, value.values() if isinstance(value, dict) else value))
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _limit(name: str) -> int | None:
    """The greatest number that a field of this name can be; None if it is no size."""
    if name.endswith(_LENGTHS):
        return MAX_LENGTH
    if name.endswith(_LAYERS):
        return MAX_LAYERS
    if "vocab" in name:
        return MAX_VOCABULARY
    if "experts" in name:
        return MAX_EXPERTS
    return MAX_SIZE if name.endswith(_SIZES) or name.startswith(("num_", "n_")) else None
