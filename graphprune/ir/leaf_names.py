"""Names of the leaves of a nested structure, by its specification alone, and of the outputs of a graph."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

import torch.utils._pytree as pytree
from torch import fx
from torch.utils._pytree import TreeSpec

_KEY = re.compile(r"""\[(['"]?)(.*?)\1\]""")


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


def output_names(graph: fx.Graph) -> list[tuple[str, ...]]:
    """All names of each output: its key, ``hidden_states.0`` say, the key as code, and ``output 0``."""
    leaves = pytree.tree_leaves(graph.output_node().args[0])
    spec = getattr(getattr(graph._codegen, "pytree_info", None), "out_spec", None)
    keys = leaf_names(spec) if spec is not None else []
    if len(keys) != len(leaves):
        keys = [getattr(leaf, "name", "") for leaf in leaves]
    return [(_KEY.sub(r".\2", key).strip("."), key, f"output {i}") for i, key in enumerate(keys)]


def matches_any(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a pattern matches one of the names."""
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)
