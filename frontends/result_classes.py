"""Dataclasses in arguments and results of a module, which torch.export must know how to take apart."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch.utils._pytree as pytree


def register_dataclasses(value: Any) -> bool:
    """Register every dataclass in `value` that torch does not know yet, so that it can be captured and saved.

    Returns whether there was any.
    """
    pending, registered = [value], False
    while pending:
        leaf = pending.pop()
        if not pytree.tree_is_leaf(leaf):
            pending += pytree.tree_leaves(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            kind = type(leaf)
            pytree.register_pytree_node(
                kind, _fields, _rebuild(kind), serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
                flatten_with_keys_fn=_named_fields,
            )  # fmt: skip
            pending.append(leaf)
            registered = True
    return registered


def _fields(value: Any) -> tuple[list[Any], list[str]]:
    names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    return [getattr(value, name) for name in names], names


def _named_fields(value: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
    parts, names = _fields(value)
    return [(pytree.GetAttrKey(name), part) for name, part in zip(names, parts, strict=True)], names


def _rebuild(kind: type) -> Callable[[Any, Any], Any]:
    """Function that builds an instance without its constructor, which may compute or refuse."""

    def rebuild(parts: Any, names: Any) -> Any:
        value: Any = object.__new__(kind)
        for name, part in zip(names, parts, strict=True):
            object.__setattr__(value, name, part)
        return value

    return rebuild
