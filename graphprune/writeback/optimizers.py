"""Optimizers and averaged copies of a module that was narrowed: they follow its parameters."""

import copy
import gc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from graphprune.errors import WriteBackError
from graphprune.ir.weights import KeepByName, Narrowed, Scaled
from graphprune.support.undo import Undo
from graphprune.writeback.zero_padding import Padded


@dataclass(frozen=True)
class TensorCuts:
    """Cuts of the tensors of a module: retained indices in the graph and in the module, which may be padded with zeros.

    `shapes` are those before the cut, `factors` multiply weights.
    """

    keep: KeepByName
    wide: KeepByName
    shapes: Mapping[str, tuple[int, ...]]
    factors: Mapping[str, Tensor]

    def of(self, name: str, tensor: Tensor, dims: Iterable[int] | None = None) -> Tensor:
        """A tensor cut like the weight of this name, along these dimensions alone if there are any."""
        keep, wide = self.keep.get(name, {}), self.wide.get(name, {})
        if dims is not None:
            keep, wide = ({d: i for d, i in cut.items() if d in dims} for cut in (keep, wide))
        narrow = Narrowed({name: tensor}, {name: keep})
        return Padded(narrow, {name: keep}, {name: wide}, {name: tuple(tensor.shape)})[name].contiguous()

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        """A weight cut like the one of this name, with its factor."""
        return Scaled({name: self.of(name, tensor)}, {n: f for n, f in self.factors.items() if n == name})[name]


#: Names of parameters with their tensors before and after the cut.
Replaced = Mapping[str, tuple[nn.Parameter, nn.Parameter]]


def follow(undo: Undo, optimizer: Optimizer, replaced: Replaced, cuts: TensorCuts) -> list[str]:
    """Swap replaced parameters in an optimizer and cut its state; return the parameters whose state starts anew."""
    by_old = {id(old): (name, new) for name, (old, new) in replaced.items()}
    reset = _without_history(undo, optimizer, replaced)
    for group in optimizer.param_groups:
        parameters = group["params"]
        undo.steps.append(partial(parameters.__setitem__, slice(None), list(parameters)))
        for i, old in enumerate(list(parameters)):
            if id(old) not in by_old:
                continue
            name, new = by_old[id(old)]
            parameters[i] = new
            if old in optimizer.state:
                state = _state(name, old, optimizer.state[old], cuts)
                reset += [name] if state is None else []
                _move(undo, optimizer.state, old, new, state)
    _forget_count(undo, optimizer)
    return reset


def _without_history(undo: Undo, optimizer: Optimizer, replaced: Replaced) -> list[str]:
    """Remove a history of all parameters in one vector, as that of LBFGS; return the parameters that it was of."""
    if not replaced or getattr(optimizer, "_numel_cache", None) is None:
        return []
    undo.steps.append(partial(optimizer.state.update, dict(optimizer.state)))
    optimizer.state.clear()
    undo.set_item(vars(optimizer), "_numel_cache", None)
    return [*replaced]


def forget(undo: Undo, optimizer: Optimizer, removed: Iterable[nn.Parameter]) -> None:
    """Remove parameters from an optimizer, with their state and names."""
    own = {id(parameter) for parameter in removed}
    for group in optimizer.param_groups:
        retained = [id(parameter) not in own for parameter in group["params"]]
        for values in (group["params"], group.get("param_names", [])):  # in place: L-BFGS holds the first list, too
            undo.steps.append(partial(values.__setitem__, slice(None), list(values)))
            values[:] = compress(list(values), retained)
    _forget_count(undo, optimizer)
    for parameter in removed:
        if parameter in optimizer.state:
            undo.steps.append(partial(optimizer.state.__setitem__, parameter, optimizer.state.pop(parameter)))


def _forget_count(undo: Undo, optimizer: Optimizer) -> None:
    """Let L-BFGS count its parameters anew."""
    if "_numel_cache" in vars(optimizer):
        undo.set_item(vars(optimizer), "_numel_cache", None)


def _move(undo: Undo, states: Any, old: Tensor, new: Tensor, state: dict[str, Any] | None) -> None:
    before = states.pop(old)
    if state is not None:
        states[new] = state

    def restore() -> None:
        states.pop(new, None)
        states[old] = before

    undo.steps.append(restore)


def _state(name: str, old: Tensor, state: Mapping[str, Any], cuts: TensorCuts) -> dict[str, Any] | None:
    """State of a parameter after its cut; None if a part of it cannot be cut."""
    new: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.numel() == 1:
            if isinstance(value, list | tuple | dict) and value:
                return None
            new[key] = value
            continue
        try:
            cut = _cut(name, key, value, tuple(old.shape), cuts)
        except RuntimeError:  # retained indices that depend on a dimension that the state has not
            cut = None
        if cut is None:
            return None
        new[key] = cut
    return new


def _cut(name: str, key: str, value: Tensor, shape: tuple[int, ...], cuts: TensorCuts) -> Tensor | None:
    """A tensor of the state, of the shape of the parameter or with one dimension of size 1 or without it."""
    if value.dim() == len(shape) and all(a in (b, 1) for a, b in zip(value.shape, shape, strict=True)):
        return cuts.of(name, value, [i for i, size in enumerate(value.shape) if size == shape[i]])
    missing = [i for i in range(len(shape)) if tuple(value.shape) == (*shape[:i], *shape[i + 1 :])]
    if len(missing) > 1:  # of equal sizes: factored moments have names
        missing = [len(shape) - 1] if "row" in key else [len(shape) - 2] if "col" in key else []
    if not missing:
        return None
    kept = value.unsqueeze(missing[0])
    return cuts.of(name, kept, [i for i in range(len(shape)) if i != missing[0]]).squeeze(missing[0])


def stale(removed: Iterable[nn.Parameter]) -> list[Optimizer]:
    """Optimizers in memory that hold parameters which the module no longer has."""
    old, kinds = {id(parameter) for parameter in removed}, _with_subclasses(Optimizer)
    held = [item for item in gc.get_objects() if type(item) in kinds]
    groups = [(item, group) for item in held for group in getattr(item, "param_groups", ())]
    return list({id(item): item for item, group in groups if any(id(p) in old for p in group["params"])}.values())


def _with_subclasses(kind: type) -> set[type]:
    """A class and all classes derived from it: membership is quicker to test than by `issubclass`, for many objects."""
    return {kind}.union(*map(_with_subclasses, type.__subclasses__(kind)))


def averaged(average: nn.Module) -> nn.Module:
    """The copy that an averaged model holds, or is."""
    inner = getattr(average, "module", None)
    return inner if isinstance(inner, nn.Module) else average


@torch.no_grad()
def follow_average(undo: Undo, average: nn.Module, module: nn.Module, former: list[str], cuts: TensorCuts) -> None:
    """Narrow an averaged copy of the module like the module, with its own values.

    `average` is a copy, or holds one in its attribute `module`, as `torch.optim.swa_utils.AveragedModel` does.

    Raises:
        WriteBackError: if its parameters are not those of the module before the cut.
    """
    own: Any = averaged(average)
    values = dict([*own.named_parameters(remove_duplicate=False), *own.named_buffers(remove_duplicate=False)])
    if sorted(values) != former or any(tuple(values[n].shape) != s for n, s in cuts.shapes.items() if n in values):
        raise WriteBackError(f"{type(average).__name__} is no averaged copy of the module that was traced")
    new = copy.deepcopy(module)
    for name, tensor in [*new.named_parameters(), *new.named_buffers()]:
        tensor.copy_(cuts.weight(name, values[name]))
    for layer, other in zip(own.modules(), new.modules(), strict=True):
        other.training = layer.training
    before = dict(vars(own))
    undo.steps += [partial(vars(own).update, before), vars(own).clear]  # the last first
    undo.set_class(own, type(new))
    vars(own).clear()
    vars(own).update(vars(new))
