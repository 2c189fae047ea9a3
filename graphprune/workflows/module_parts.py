"""Pruning of a module in place: the whole of it, or its largest parts that can be captured."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphprune.errors import (
    CalibrationError,
    GraphpruneError,
    PlanError,
    TraceError,
    VerificationError,
    WriteBackError,
    reason_of,
)
from graphprune.execution.equivalence import run
from graphprune.execution.module_state import evaluation_mode, preserved_state
from graphprune.frontends.modules import trace
from graphprune.ir.program import Inputs, Program
from graphprune.writeback.module import WrittenBack

#: Plans, cuts and verifies the program of a part at a path.
Cut = Callable[[str, Program], Program]
_UNCALLED = "it is not called with these inputs"


@dataclass(frozen=True)
class PrunedParts:
    """Pruned parts of a module by path, "" the whole: their programs, and what was written back to each.

    `untouched` has the reasons why other parts are as they were.
    """

    programs: dict[str, Program] = field(default_factory=dict)
    written_back: dict[str, WrittenBack] = field(default_factory=dict)
    untouched: dict[str, str] = field(default_factory=dict)


def prune_parts(module: nn.Module, inputs: Inputs, cut: Cut, companions: Mapping[str, Any]) -> PrunedParts:
    """Prune `module`, called with `inputs`, in place; `companions` follow the write-back.

    Raises:
        WriteBackError: if nothing can be pruned, or the whole does not run around its narrower parts.
    """
    search = _Search(module, inputs, cut, companions)
    search.descend("", module)
    pruned = search.pruned
    if not pruned.programs:
        raise WriteBackError(f"nothing of {type(module).__name__} can be pruned: {_listed(pruned.untouched)}")
    if "" in pruned.programs:
        return pruned
    try:
        called(module, inputs)
    except Exception as fault:  # code of the whole may read any size of its parts
        raise WriteBackError(
            f"{type(module).__name__} does not run around its narrower parts {', '.join(pruned.programs)} (reason: "
            f"{reason_of(fault)}); trace and prune a part of it that others do not look into"
        ) from fault
    return pruned


@dataclass
class _Search:
    """Search for the largest parts that can be captured and narrowed; `calls` are the inputs of each by path."""

    whole: nn.Module
    inputs: Inputs
    cut: Cut
    companions: Mapping[str, Any]
    pruned: PrunedParts = field(default_factory=PrunedParts)
    calls: Mapping[str, Inputs] | None = None

    def descend(self, path: str, part: nn.Module) -> None:
        """Prune a part, or else those in it."""
        reason = self._refusal(path, part)
        if reason is None:
            return
        children = [(name, child) for name, child in part.named_children() if count(child) and not reason.final]
        if self._inputs(path) is not None or not children:
            self.pruned.untouched[path] = reason.text
        for name, child in children:
            self.descend(f"{path}.{name}".lstrip("."), child)

    def _inputs(self, path: str) -> Inputs | None:
        """Inputs of a part; the whole is run for those of the others."""
        if not path:
            return self.inputs
        if self.calls is None:
            self.calls = _calls(self.whole, self.inputs)
        return self.calls.get(path)

    def _refusal(self, path: str, part: nn.Module) -> "_Reason | None":
        """Why a part remains as it is; None if it was pruned."""
        inputs = self._inputs(path)
        if inputs is None:
            return _Reason(_UNCALLED, final=False)
        if shared := _shared(self.whole, part):
            return _Reason(f"{shared} is also a parameter of another part", final=False)
        if path and self.companions.get("average") is not None:
            raise WriteBackError("an averaged copy cannot follow a module that is pruned in parts; omit average")
        try:
            small = self.cut(path, trace(part, *inputs))
            written = small.write_back(part, **self.companions)
        except (TraceError, WriteBackError) as fault:
            return _Reason(reason_of(fault), final=False)
        except (CalibrationError, PlanError, VerificationError) as fault:
            if not path:
                raise
            return _Reason(reason_of(fault), final=True)
        self.pruned.programs[path], self.pruned.written_back[path] = small, written
        return None


@dataclass(frozen=True)
class _Reason:
    """Why a part is not pruned; `final` if parts of it cannot be, either."""

    text: str
    final: bool


def recorded(part: nn.Module, whole: Callable[[], Any]) -> tuple[Inputs | None, Any]:
    """Inputs and output of the first call of a part while the whole runs; None if it is not called."""
    seen: list[Any] = []

    def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not seen:  # later code may write to these tensors
            seen.append((pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), (args, kwargs)), output))

    handle = part.register_forward_hook(hook, with_kwargs=True)
    try:
        whole()
    finally:
        handle.remove()
    return seen[0] if seen else (None, None)


def _calls(module: nn.Module, inputs: Inputs) -> dict[str, Inputs]:
    """Inputs of the first call of every submodule, by path, while the whole runs."""
    calls: dict[str, Inputs] = {}

    def note(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if path not in calls:  # later code may write to these tensors
            calls[path] = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, args, kwargs: note(path, args, kwargs)

    hooks = [part.register_forward_pre_hook(hook(path), with_kwargs=True) for path, part in module.named_modules()]
    try:
        called(module, inputs)
    except GraphpruneError:
        raise
    except Exception as fault:  # code of a user may raise anything
        raise TraceError(f"{type(module).__name__} does not run on its inputs (reason: {reason_of(fault)})") from fault
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def called(module: nn.Module, inputs: Inputs) -> None:
    """Run a module in evaluation mode, and restore its state."""
    with torch.no_grad(), evaluation_mode(module), preserved_state(module):
        run(module, *inputs)


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


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{path or 'the whole'}: {why}" for path, why in reasons.items()) or "it has no parameters"
