"""Which fields of a Hugging Face config give layers the biases that a refit adds, found by building models."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from graphprune.errors import ExportError
from graphprune.huggingface.meta_models import as_text, built, from_table

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def with_parameters(config: PreTrainedConfig, names: Collection[str]) -> PreTrainedConfig:
    """A copy of `config` whose stock class has parameters of these names too; fields that speak of a bias are set.

    Raises:
        ExportError: if no such field makes one of them; names the first.
    """
    table, made = json.loads(as_text(config)), built(type(config), as_text(config))
    fields = [key for key, value in table.items() if "bias" in key and value is False]
    for field in fields:
        if isinstance(made, str) or not set(names) - made.shapes.keys():
            break
        tried = {**table, field: True}
        found = built(type(config), json.dumps(tried, sort_keys=True))
        more = not isinstance(found, str) and found.shapes.keys() > made.shapes.keys()
        if not isinstance(found, str) and more and found.shapes.keys() & (set(names) - made.shapes.keys()):
            table, made = tried, found
    missing = sorted(set(names) - (set() if isinstance(made, str) else made.shapes.keys()))
    if missing:
        model = (config.architectures or ["the model"])[0]
        tried_all = f", nor with {' or '.join(fields)} set" if fields else ""
        raise ExportError(f"{model} has no parameter {missing[0]!r}{tried_all}")
    return from_table(type(config), table)


def parameters(config: PreTrainedConfig) -> set[str]:
    """The names of all parameters and buffers of the stock class.

    Raises:
        ExportError: if the class cannot be built.
    """
    made = built(type(config), as_text(config))
    if isinstance(made, str):
        raise ExportError(f"transformers cannot build a model from config.json: {made}; repair the source folder")
    return set(made.shapes)
