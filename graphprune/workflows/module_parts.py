"""Pruning of a module in memory by one call: the whole of it, or the parts that can be captured."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphprune.errors import PlanError, TraceError, VerificationError, WriteBackError, reason_of
from graphprune.execution.equivalence import run
from graphprune.execution.module_state import evaluation_mode, preserved_state
from graphprune.frontends.modules import trace
from graphprune.ir.program import Inputs, Program
from graphprune.writeback.module import WrittenBack

Cut = Callable[[Program], Program]  # a program, planned, cut and verified
_UNCALLED = "it is not called with these inputs"


@dataclass(frozen=True)
class PrunedModule:
    """Result of pruning a module: what was written back to each part, and why other parts are as they were.

    A part is a submodule by its path, "" for the whole module. `before` and `after` count parameters of the whole.
    """

    parts: Mapping[str, WrittenBack]
    untouched: Mapping[str, str]
    before: int
    after: int

    def __str__(self) -> str:
        removed = 1 - self.after / max(1, self.before)
        lines = [f"{removed:.1%} of {self.before:,} parameters removed"]
        lines += [f"{path or 'the whole module'}: {result}" for path, result in self.parts.items()]
        lines += [f"{path or 'the whole module'} is as it was: {why}" for path, why in self.untouched.items()]
        return "\n".join(lines)


def prune_parts(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], cut: Cut) -> PrunedModule:
    """Prune `module`, called with `args` and `kwargs`, in place; see `graphprune.prune_module`.

    A copy is pruned first, and called as a whole, so that `module` is unchanged on any failure.

    Raises:
        WriteBackError: if nothing can be pruned, or the whole does not run around its narrower parts.
    """
    before = _count(module)
    rehearsal = copy.deepcopy(module)
    search = _Search(rehearsal, _calls(rehearsal, args, kwargs), cut, {}, {})
    search.descend("", rehearsal)
    if not search.cuts:
        raise WriteBackError(f"nothing of {type(module).__name__} can be pruned: {_listed(search.untouched)}")
    try:
        _called(rehearsal, args, kwargs)
    except Exception as fault:  # code of the whole may read any size of its parts
        raise WriteBackError(
            f"{type(module).__name__} does not run around its narrower parts {', '.join(search.cuts)} (reason: "
            f"{reason_of(fault)}); trace and prune a part of it that others do not look into"
        ) from fault
    parts = {path: small.write_back(module.get_submodule(path)) for path, small in search.cuts.items()}
    return PrunedModule(parts, search.untouched, before, _count(module))


@dataclass(frozen=True)
class _Search:
    """Search for the largest parts that can be captured and narrowed; `calls` are the inputs of each by path."""

    whole: nn.Module
    calls: Mapping[str, Inputs]
    cut: Cut
    cuts: dict[str, Program]
    untouched: dict[str, str]

    def descend(self, path: str, part: nn.Module) -> None:
        """Prune a part, or else those in it."""
        reason = self._refusal(path, part)
        if reason is None:
            return
        children = [(name, child) for name, child in part.named_children() if _count(child) and not reason.final]
        if path in self.calls or not children:
            self.untouched[path] = reason.text
        for name, child in children:
            self.descend(f"{path}.{name}".lstrip("."), child)

    def _refusal(self, path: str, part: nn.Module) -> "_Reason | None":
        """Why a part remains as it is; None if it was pruned."""
        if path not in self.calls:
            return _Reason(_UNCALLED, final=False)
        if shared := _shared(self.whole, part):
            return _Reason(f"{shared} is also a parameter of another part", final=False)
        try:
            small = self.cut(trace(part, *self.calls[path]))
            small.write_back(part)
        except (TraceError, WriteBackError) as fault:
            return _Reason(reason_of(fault), final=False)
        except (PlanError, VerificationError) as fault:
            return _Reason(reason_of(fault), final=True)
        self.cuts[path] = small
        return None


@dataclass(frozen=True)
class _Reason:
    """Why a part is not pruned; `final` if parts of it cannot be, either."""

    text: str
    final: bool


def _calls(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Inputs]:
    """Inputs of the first call of every submodule, by path, while the whole runs."""
    calls: dict[str, Inputs] = {}

    def note(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if path not in calls:  # later code may write to these tensors
            calls[path] = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, args, kwargs: note(path, args, kwargs)

    hooks = [part.register_forward_pre_hook(hook(path), with_kwargs=True) for path, part in module.named_modules()]
    try:
        _called(module, args, kwargs)
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def _called(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    with torch.no_grad(), evaluation_mode(module), preserved_state(module):
        run(module, args, kwargs)


def _shared(whole: nn.Module, part: nn.Module) -> str:
    """A parameter of a part that others hold, too; "" if there is none."""
    inside = {id(layer) for layer in part.modules()}
    own = {id(parameter): name for name, parameter in part.named_parameters()}
    return next((own[key] for key in _held(whole, inside) if key in own), "")


def _held(whole: nn.Module, inside: set[int]) -> Iterator[int]:
    """Parameters that layers outside hold."""
    for layer in whole.modules():
        if id(layer) not in inside:
            yield from (id(parameter) for parameter in layer.parameters(recurse=False))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{path or 'the whole'}: {why}" for path, why in reasons.items()) or "it has no parameters"
