"""Removal of entries from module lists: renumber names, shorten the module, and update its configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from graphprune.errors import WriteBackError
from graphprune.huggingface.entry_fields import shortened
from graphprune.huggingface.list_entries import index_attributes, removed_by_list
from graphprune.huggingface.meta_models import as_text, flat, from_table
from graphprune.support.undo import Undo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def shorten_lists(undo: Undo, module: nn.Module, entries: Sequence[str]) -> None:
    """Remove entries from the lists of a module, in place, and renumber the others.

    Raises:
        WriteBackError: if an entry is not in a ModuleList or Sequential.
    """
    for prefix, removed in removed_by_list(entries).items():
        container = module.get_submodule(prefix)
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            raise WriteBackError(
                f"{prefix} is a {type(container).__name__}, expected a ModuleList or Sequential, from which entries "
                "can be removed; use the rewritten graph, program.module(), instead"
            )
        indices = list(index_attributes(container))
        retained = [(old, part) for old, part in enumerate(container) if old not in removed]
        undo.set_item(vars(container), "_modules", {str(new): part for new, (_, part) in enumerate(retained)})
        new_index = {old: new for new, (old, _) in enumerate(retained)}
        for table, key in indices:
            if table[key] in new_index:
                undo.set_item(table, key, new_index[table[key]])


def shorten_config(config: PreTrainedConfig, entries: Sequence[str]) -> PreTrainedConfig:
    """A copy with which the stock class builds the model without these entries.

    The field with the number of entries is identified by building models. Lists with one item per entry, such as its
    kind, lose the items of the removed ones; fields by which entries differ, such as the number of dense layers before
    those with experts, are changed until every retained entry is built as before.

    Raises:
        ExportError: if there is no such field.
    """
    kind, table = type(config), json.loads(as_text(flat(config)))
    for prefix, removed in removed_by_list(entries).items():
        table = shortened(kind, table, prefix, removed)
    return from_table(kind, table)
