"""Names of the leaves of a nested structure, by its specification alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils._pytree import TreeSpec


def leaf_names(spec: TreeSpec) -> list[str]:
    """Name of each leaf by its position, as in ``['logits'][0]``; the classes of the structure are not built."""
    return list(_names(spec, ""))


def _names(spec: TreeSpec, prefix: str) -> Iterator[str]:
    if spec.is_leaf():
        yield prefix
        return
    parts = spec.children()
    for key, part in zip(_keys(spec.type, spec.context, len(parts)), parts, strict=True):
        yield from _names(part, prefix + key)


def _keys(kind: Any, context: Any, count: int) -> Sequence[str]:
    """Names of the parts of one structure: fields, keys, or positions where the structure has no names."""
    if hasattr(context, "_fields"):  # the class of a named tuple
        return [f".{name}" for name in context._fields]
    if isinstance(context, list | tuple) and len(context) == 2 and isinstance(context[1], list):
        context = context[0] if isinstance(context[0], list) else context[1]  # of dataclasses and defaultdicts
    if isinstance(context, list | tuple) and len(context) == count and kind not in (list, tuple):
        return [f"[{key!r}]" for key in context]
    return [f"[{i}]" for i in range(count)]
