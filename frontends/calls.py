"""Arguments of a module as torch.export requires them: plain tensors that share no memory."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from graphprune.errors import TraceError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def unshared(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """Arguments in which no tensor occurs twice, belongs to the module, or has gaps: such ones are copied.

    The tracer identifies values by object identity: two inputs that are one tensor would become a single input. A slice
    has gaps between its rows; its strides would become conditions that tensors without gaps do not fulfil.
    """
    seen = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}

    def own(leaf: Tensor) -> Tensor:
        known = id(leaf) in seen
        seen.add(id(leaf))
        return leaf.detach().clone() if known or _has_gaps(leaf) else leaf

    copied: Arguments = pytree.tree_map_only(Tensor, own, (args, dict(kwargs)))
    return copied


def _has_gaps(tensor: Tensor) -> bool:
    """Whether a copy has other strides; those of a transposed tensor or of channels-last ones remain."""
    return tensor.layout is torch.strided and torch.empty_like(tensor, device="meta").stride() != tensor.stride()


def with_new_containers(arguments: Arguments) -> Arguments:
    """Arguments with their own leaves in new lists and dicts, which a module may change."""
    renewed: Arguments = pytree.tree_map(lambda leaf: leaf, arguments)
    return renewed


def require_plain(module: nn.Module, tensors: Iterable[tuple[str, Any]]) -> None:
    """Check that no submodule is a TorchScript module and no tensor wraps others, as distributed and nested tensors do.

    Raises:
        TraceError: if one is or does.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TraceError(
                f"{name or 'the module'} is a {type(part).__name__}, which torch.export cannot follow; expected the "
                "Python module that it was scripted from"
            )
    for name, tensor in tensors:
        sparse = isinstance(tensor, Tensor) and tensor.layout not in (torch.strided, torch.jagged)
        if sparse and name.startswith("input "):
            raise TraceError(
                f"{name} has the layout {str(tensor.layout).removeprefix('torch.')}, expected a dense tensor: call "
                "to_dense first"
            )
        if isinstance(tensor, Tensor) and is_traceable_wrapper_subclass(tensor):
            raise TraceError(
                f"{name} is a {type(tensor).__name__}, which is made of several tensors; expected a plain tensor: "
                "gather or dequantize it first"
            )
