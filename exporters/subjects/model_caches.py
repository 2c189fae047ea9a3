"""The cache of a model of transformers among its arguments and outputs, by its name in this version."""

import inspect
from typing import Any

from torch import nn

# Names of the cache among the arguments and outputs of transformers 5.24 and later, and of earlier versions.
_CACHE_NAMES = ("cache", "past_key_values")


def named_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """The argument of `forward` that takes the cache, by its name in this version; empty if there is none."""
    signature = inspect.signature(model.forward).parameters
    return next(({name: cache} for name in _CACHE_NAMES if name in signature), {})


def cache_of(output: Any) -> Any:
    """The cache in a model's output, by its name in this version; None if there is none."""
    return next((output[name] for name in _CACHE_NAMES if name in output), None)
