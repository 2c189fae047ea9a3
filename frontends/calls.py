"""A call of a module as torch.export takes it: of plain tensors, apart from each other."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from graphprune.errors import TraceError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def apart(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """The arguments, with a copy of every tensor that stands in two places or belongs to the module.

    The tracer tells values by their identity: two inputs that are one tensor would become one input for good.
    """
    seen = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}

    def own(leaf: Tensor) -> Tensor:
        known = id(leaf) in seen
        seen.add(id(leaf))
        return leaf.detach().clone() if known else leaf

    copied: Arguments = pytree.tree_map_only(Tensor, own, (args, dict(kwargs)))
    return copied


def require_plain(module: nn.Module, tensors: Iterable[tuple[str, Any]]) -> None:
    """See that no part of a module is a script, and no tensor made of several, as distributed and nested ones are.

    Raises:
        TraceError: if one is.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TraceError(
                f"{name or 'the module'} is a {type(part).__name__}, which torch.export cannot follow; expected the "
                "Python module of which it was made"
            )
    for name, tensor in tensors:
        if isinstance(tensor, Tensor) and is_traceable_wrapper_subclass(tensor):
            raise TraceError(
                f"{name} is a {type(tensor).__name__}, which is made of several tensors; expected a plain tensor: "
                "gather or dequantise it first"
            )
