"""Capture any `nn.Module` as a program with torch.export."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from graphprune.errors import TraceError
from graphprune.execution.module_state import evaluation_mode, named_keywords, preserved_state
from graphprune.frontends.calls import require_plain, unshared
from graphprune.frontends.lowering import functional, tidy
from graphprune.frontends.refusals import explain, quiet
from graphprune.ir.module_names import require_names
from graphprune.ir.program import Program, Source
from graphprune.ir.weights import MaterializedWeights


def trace(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] = MappingProxyType({}),
    *,
    dynamic_shapes: Any = None,
    state: tuple[str, ...] = (),
) -> Program:
    """Capture `module`, called with `args` and `kwargs`, as a program.

    The module is captured in evaluation mode. By default the first dimension of every tensor and the second of every
    integer tensor (batch and sequence) stay dynamic where their example size is not 1. Inputs and outputs named in
    `state` (globs) may be pruned.

    Raises:
        TraceError: if torch.export refuses the module; names the line of model code.
    """
    require_names(module)
    leaves = ((f"input {i}", leaf) for i, leaf in enumerate(pytree.tree_leaves((args, dict(kwargs)))))
    require_plain(module, (*_named(module), *leaves))
    args, kwargs = unshared(module, args, kwargs)
    with evaluation_mode(module), preserved_state(module), named_keywords(module, kwargs):
        exported = export(module, args, kwargs, dynamic_shapes)
    return from_exported(exported, (args, kwargs), state=state)


def export(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any = None) -> ExportedProgram:
    """Capture the functional graph of high-level ATen operators.

    Raises:
        TraceError: if torch.export refuses.
    """
    try:
        with torch.no_grad(), quiet():
            dynamic: Any = shapes if shapes is not None else _dynamic(args, kwargs)
            exported = torch.export.export(module, args, dict(kwargs), strict=False, dynamic_shapes=dynamic)
            return functional(exported)
    except Exception as fault:
        raise TraceError(explain(module, fault)) from fault


def from_exported(
    exported: ExportedProgram,
    inputs: tuple[tuple[Any, ...], Mapping[str, Any]],
    *,
    state: tuple[str, ...] = (),
    source: Source | None = None,
) -> Program:
    """Program made of an `ExportedProgram`."""
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    ties = _ties(module)
    stored = _tensors(module, ties)
    tidy(module.graph)
    return Program(
        graph=module.graph,
        weights=MaterializedWeights(stored),
        parameters=frozenset(name for name, _ in module.named_parameters()),
        ties=MappingProxyType(ties),
        inputs=inputs,
        submodules=MappingProxyType({n: m for n, m in module.named_children() if isinstance(m, fx.GraphModule)}),
        state=state,
        source=source,
    )


def _dynamic(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ShapesCollection:
    """Dynamic dimensions: batch of every tensor and sequence of every integer tensor, where the example is not 1."""
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in pytree.tree_leaves((args, dict(kwargs))):
        if isinstance(leaf, Tensor) and leaf.dim():
            last = 1 if leaf.is_floating_point() else 2
            shapes[leaf] = {dim: Dim.AUTO for dim in range(min(last, leaf.dim())) if leaf.shape[dim] != 1}
    return shapes


def _ties(module: nn.Module) -> dict[str, str]:
    """Further names of parameters that share their memory with an earlier one."""
    first: dict[object, str] = {}
    ties = {}
    for name, tensor in _named(module):
        earlier = first.setdefault(_memory(tensor), name)
        if earlier != name:
            ties[name] = earlier
    return ties


def _memory(tensor: Tensor) -> object:
    """Key that is equal for tensors over the same memory; a saved program has several tensors over one storage."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _tensors(module: nn.Module, ties: Mapping[str, str]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in _named(module) if name not in ties}


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and lifted constants with all their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for prefix, child in module.named_modules():
        for name, value in vars(child).items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}".lstrip("."), value
