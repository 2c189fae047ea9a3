"""Parameters that the traced call does not use: auxiliary heads, mask tokens, and the like.

Layers that run in training alone are followed by marking: what computes the removed indices of a group is set to NaN,
and the layer's input shows where they arrive. Parameters that no run reaches are cut where one reading is possible.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.axes.groups import Dependencies, Group
from graphprune.ir.program import Program
from graphprune.planning.plan import Rows, by_parameter, primes_to_keep

#: Removed indices by the name of a parameter or buffer, and dimension.
Removed = dict[tuple[str, int], set[int]]


def unused(program: Program, module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module that are not in the program of its traced call."""
    used = {str(node.target) for node in program.tensors()} | program.shapes().keys() | program.ties.keys()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    held = {id(tensor) for name, tensor in tensors.items() if name in used}
    return {name: t for name, t in tensors.items() if name not in used and id(t) not in held and t.dim()}


@torch.no_grad()
def reached(
    module: nn.Module,
    run: Callable[[], object],
    dependencies: Dependencies,
    groups: Mapping[str, Rows],
    tensors: Mapping[str, Tensor],
) -> Removed:
    """Indices of unused parameters that the removed indices of the groups reach in a run."""
    removed: Removed = {}
    owners: dict[str, list[str]] = {}
    for name in tensors:
        owners.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
    for name, rows in groups.items():
        with ExitStack() as stack:
            stack.enter_context(_marked(module, dependencies, dependencies.by_name[name], rows))
            for path, leaves in owners.items():
                hook = _hook(path, leaves, removed)
                stack.callback(module.get_submodule(path).register_forward_pre_hook(hook).remove)
            try:
                run()
            except Exception:
                continue
    return removed


@contextmanager
def _marked(module: nn.Module, dependencies: Dependencies, group: Group, rows: Rows) -> Iterator[None]:
    """NaN in the parameters that compute the removed indices of a group, for the block."""
    saved: list[tuple[Tensor, Tensor]] = []
    produced = {(place.parameter, place.dim) for place in group.places if place.role != "contracted"}
    try:
        for name, dims in by_parameter(dependencies, primes_to_keep(dependencies, {group.name: rows})).items():
            tensor = _tensor(module, name)
            for dim, indices in dims.items():
                if tensor is None or not tensor.is_floating_point() or (name, dim) not in produced or indices.dim() > 1:
                    continue
                saved.append((tensor, tensor.detach().clone()))
                removed = torch.ones(tensor.shape[dim], dtype=torch.bool)
                removed[indices] = False
                tensor.index_fill_(dim, removed.nonzero()[:, 0].to(tensor.device), torch.nan)
        yield
    finally:
        for tensor, values in reversed(saved):
            tensor.copy_(values)


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    path, _, leaf = name.rpartition(".")
    layer = module.get_submodule(path)
    tensor = layer._parameters.get(leaf, layer._buffers.get(leaf))
    return tensor.detach() if tensor is not None else None


def _hook(path: str, leaves: list[str], removed: Removed) -> Callable[[nn.Module, Any], None]:
    def hook(layer: nn.Module, args: Any) -> None:
        for value in args:
            if (marks := _marks(value)) is None:
                continue
            indices = marks[1].nonzero()[:, 0].tolist()
            for leaf, dim in _consuming(layer, leaves, *marks):
                removed.setdefault((f"{path}.{leaf}".removeprefix("."), dim), set()).update(indices)

    return hook


def _marks(value: Any) -> tuple[int, Tensor] | None:
    """Dimension along which whole slices of a tensor are NaN and others are not, and which ones; None if unclear."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.dim():
        return None
    nan = value.isnan()
    for dim in range(value.dim()):
        along = nan.movedim(dim, -1).flatten(0, -2) if value.dim() > 1 else nan[None]
        if along.any() and not along.all() and bool((along == along[:1]).all()):
            return dim - value.dim(), along[0]
    return None


def _consuming(layer: nn.Module, leaves: list[str], dim: int, marks: Tensor) -> list[tuple[str, int]]:
    """Dimensions of the parameters of a layer along a dimension of its input, counted from the end."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        if layer.groups == 1:
            return [("weight", 0 if layer.transposed else 1)]
        return [(leaf, 0) for leaf in leaves] if layer.groups == layer.out_channels == len(marks) else []
    if isinstance(layer, nn.Linear):
        return [("weight", 1)] if dim == -1 else []
    sized = {leaf: getattr(layer, leaf).shape for leaf in leaves}
    if all(tuple(shape) in ((len(marks),), ()) for shape in sized.values()):  # norms and the like
        return [(leaf, 0) for leaf, shape in sized.items() if len(shape)]
    places = [(leaf, i) for leaf, shape in sized.items() for i, size in enumerate(shape) if size == len(marks)]
    return places if len(places) == 1 else []


def readings(name: str, tensor: Tensor, dependencies: Dependencies, groups: Mapping[str, Rows]) -> list[Removed]:
    """Possible cuts of a parameter that no run reaches: like a group of its width in its layer or the layers inside."""
    prefix = name.rpartition(".")[0]
    prefix = f"{prefix}." if prefix else ""
    possible: list[Removed] = []
    for group in dependencies.groups:
        inside = any(p.parameter.startswith(prefix) and p.axis.size == group.size for p in group.places)
        for dim, size in enumerate(tensor.shape):
            if inside and size == group.size and group.name in groups and len(groups[group.name]) == 1:
                possible.append({(name, dim): set(range(size)) - set(groups[group.name][0])})
    return possible


def may_follow(name: str, tensor: Tensor, dependencies: Dependencies, groups: Mapping[str, Rows]) -> bool:
    """Whether a parameter of a layer that no run reaches has the former width of a group in the layers around it."""
    outer = name.rpartition(".")[0].rpartition(".")[0]
    prefix = f"{outer}." if outer else ""
    near = (g for g in dependencies.groups if any(place.parameter.startswith(prefix) for place in g.places))
    return any(g.size in tensor.shape and len(groups.get(g.name, [range(g.size)])[0]) < g.size for g in near)


@contextmanager
def layers_that_run(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[set[str]]:
    """Paths of the layers that hold these parameters and run in the block."""
    paths: set[str] = set()
    with ExitStack() as stack:
        for path in {name.rpartition(".")[0] for name in tensors}:
            hook = partial(_note, paths, path)
            stack.callback(module.get_submodule(path).register_forward_pre_hook(hook).remove)
        yield paths


def _note(paths: set[str], path: str, *_: Any) -> None:
    paths.add(path)


def retained(removed: Removed, tensors: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    """Retained indices of parameters by name and dimension."""
    keep: dict[str, dict[int, Tensor]] = {}
    for (name, dim), indices in removed.items():
        size = tensors[name].shape[dim]
        keep.setdefault(name, {})[dim] = torch.tensor([i for i in range(size) if i not in indices], dtype=torch.long)
    return keep
