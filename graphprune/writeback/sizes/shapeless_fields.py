"""Fields of configurations that set no width, such as that of a sliding window."""

import copy
from typing import Any

from torch import nn

from graphprune.huggingface.meta_models import is_config, summarize
from graphprune.huggingface.traced_model import named_config, outermost
from graphprune.writeback.attribute_slots import Slot


def sets_no_width(module: nn.Module, slot: Slot, value: int) -> bool:
    """Whether an attribute of a layer is that of a configuration, and has another meaning than a width.

    The model of the configuration then has the same shapes and head dims with another `value`. Where such a model
    cannot be built, the attribute may be a width.
    """
    name, config = slot.key, getattr(slot.owner, "config", None)
    if not is_config(config) or slot.path or slot.index is not None or vars(config).get(name) != slot.value:
        return False
    for model in outermost(module).values():
        copies: dict[int, Any] = {}
        try:
            whole = named_config(model)
            changed = copy.deepcopy(model.config, copies)
            changed.architectures = whole.architectures
            if id(config) not in copies:
                continue
            setattr(copies[id(config)], name, value)
            before, after = summarize(whole), summarize(changed)
        except Exception:  # the constructor of a configuration or model may raise any exception
            return False
        return before.shapes == after.shapes and before.numbers == after.numbers
    return False
