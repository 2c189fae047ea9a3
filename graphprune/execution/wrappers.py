"""Modules that wrap another one without changing what it computes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from graphprune.errors import TraceError

#: The module inside a wrapper, by the name of the wrapper's class and the module that defines it.
_INSIDE: dict[tuple[str, str], Callable[[Any], nn.Module]] = {
    ("torch.nn.parallel.data_parallel", "DataParallel"): lambda wrapper: wrapper.module,
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): lambda wrapper: wrapper.module,
    ("torch._dynamo.eval_frame", "OptimizedModule"): lambda wrapper: wrapper._orig_mod,
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper"): (
        lambda wrapper: wrapper._checkpoint_wrapped_module
    ),
}
_SHARDED = ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel")


def unwrapped(module: nn.Module) -> nn.Module:
    """Module inside of wrappers for parallel or compiled execution; the module itself if there are none."""
    return list(nested(module))[-1]


def nested(module: nn.Module) -> Iterator[nn.Module]:
    """The module and those inside of it as a wrapper, the outermost first."""
    seen: set[int] = set()
    inside: nn.Module | None = module
    while inside is not None and id(inside) not in seen:
        seen.add(id(inside))
        yield inside
        inside = _inside(inside)


def require_module(module: object) -> nn.Module:
    """Module to capture, without wrappers.

    Raises:
        TraceError: if it is none, or one that shards its parameters.
    """
    if not isinstance(module, nn.Module):
        kind = module.__name__ if isinstance(module, type) else type(module).__name__
        what = f"the class {kind}" if isinstance(module, type) else f"a {kind}"
        raise TraceError(f"got {what}, expected an nn.Module{_advice(module)}")
    module = unwrapped(module)
    for name, part in module.named_modules():
        if _is(part, *_SHARDED):
            raise TraceError(
                f"{name or 'the module'} is a FullyShardedDataParallel, which holds pieces of parameters; build the "
                "module without it and load the full state dict into it, then trace that module"
            )
    return module


@contextmanager
def plain_names(module: nn.Module) -> Iterator[None]:
    """Let a state dict name parameters as the module does in the block: hooks of wrappers in it leave out parts."""
    held = [(part._state_dict_hooks, part._state_dict_hooks.copy()) for part in module.modules()]
    try:
        for hooks, _ in held:
            hooks.clear()
        yield
    finally:
        for hooks, before in held:
            hooks.update(before)


def _advice(value: object) -> str:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return ": call the class first"
    if isinstance(value, torch.export.ExportedProgram):
        return ": save it with torch.export.save and load the file with graphprune.load"
    return ": put the function into the forward of a module" if callable(value) else ""


def _inside(module: nn.Module) -> nn.Module | None:
    for place, inside in _INSIDE.items():
        if _is(module, *place):
            return inside(module)
    return None


def _is(module: nn.Module, where: str, name: str) -> bool:
    """Whether the module is an instance of a class, which is not imported to answer."""
    kind = getattr(sys.modules.get(where), name, None)
    return isinstance(kind, type) and isinstance(module, kind)
