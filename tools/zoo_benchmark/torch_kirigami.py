"""torch-kirigami 0.2, as its README ("Quick start") and docs/getting-started.md use it.

Its own way: candidates are discovered, ranked by magnitude, and removed until a budget is met; it raises where that
cannot be, so smaller budgets are tried too. It weighs every channel by itself, which takes minutes for wide layers.
So it is also used by hand (docs/getting-started.md, "Plan and apply the change"): of every candidate axis alternate
channels are asked for, one axis after the other, and what it refuses stays. Norms are left out by `constraints`, which
fix their axes. It captures with torch.fx, which stumbles over forwards with many optional arguments; so a model that
it refuses is offered once more, inside a module that takes only the inputs that are given.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.judge import Inputs
from tools.zoo_benchmark.peers import Prune, normalises, run_all
from tools.zoo_benchmark.record import Report
from tools.zoo_benchmark.subject import Subject

NAME = "torch-kirigami"
PACKAGE = "torch_kirigami"
SMALLER = (1.0, 0.4, 0.1)  # of the ratio that is asked for


def run(subject: Subject, report: Report, goal: Goal) -> None:
    """Prune by hand, a share of every width, or of all parameters, with and without what norms normalise."""
    modes: dict[str, Prune] = {
        f"{name}{'' if norms else ', no norms'}": partial(_prune, norms=norms, remove=remove)
        for norms in (False, True)
        for name, remove in (("by hand", _by_hand), ("channels", _channels), ("parameters", _parameters))
    }
    run_all(modes, subject, report, goal.share)


def _prune(model: nn.Module, example: Inputs, ratio: float, *, norms: bool, remove: Callable[..., None]) -> None:
    """Prune a model in place.

    Raises:
        Exception: the tool's own, if it cannot capture the model or remove anything.
    """
    graphs: Any = import_module(PACKAGE)
    tools: Any = import_module(f"{PACKAGE}.pruning")
    try:
        graph = graphs.DependencyGraph.build(model, args=example[0], kwargs=dict(example[1]))
    except graphs.CaptureError:
        model = PLAIN[len(example[0]) + len(example[1])](model, len(example[0]), tuple(example[1]))
        graph = graphs.DependencyGraph.build(model, args=(*example[0], *example[1].values()))
    pruner = tools.Pruner(model, graph=graph, constraints=[] if norms else _fixed_norms(model, graph))
    remove(tools, pruner, ratio)


def _channels(tools: Any, pruner: Any, ratio: float) -> None:
    """Remove a share of every width."""
    _within_budget(tools, pruner, [tools.ChannelRatio(ratio * part) for part in SMALLER])


def _parameters(tools: Any, pruner: Any, ratio: float) -> None:
    """Remove a share of all parameters."""
    budgets = [tools.ParameterBudget.from_ratio(pruner.model, ratio * part) for part in SMALLER]
    _within_budget(tools, pruner, budgets)


def _within_budget(tools: Any, pruner: Any, budgets: Sequence[Any]) -> None:
    """Remove by magnitude until the first budget is met that can be."""
    space = pruner.discover_candidates()
    for budget in budgets:
        try:
            pruner.prune(space, budget=budget, strategy=tools.Greedy(tools.GroupMagnitude(p=2)))
            return
        except tools.PlanningError:
            if budget is budgets[-1]:
                raise


def _by_hand(tools: Any, pruner: Any, ratio: float) -> None:
    """Remove alternate channels of every axis for which it finds a plan, together with those before."""
    graph, chosen, plan, refusal = pruner.graph, list[Any](), None, None
    step = round(1 / ratio)
    for axis, block in _axes(graph).items():
        if chosen and graph.propagate(remove=chosen).selection(axis.tensor).fully_selected_indices(axis.dim):
            continue  # an axis before is coupled to it
        indices = [i for i in range(axis.tensor.shape[axis.dim]) if i // block % step == 0]
        try:
            plan = pruner.plan_remove([*chosen, axis.select(indices)])
        except tools.PlanningError as fault:
            refusal = fault
            continue
        chosen.append(axis.select(indices))
    if plan is None:
        raise refusal or ValueError("no layer has a candidate axis")
    pruner.apply(plan)


def _axes(graph: Any) -> dict[Any, int]:
    """The candidate axes that the rules of the operators declare, and how many channels must go together."""
    specs = [graph.operator_spec(operation) for operation in graph.operations()]
    return {one.axis: one.block_size for spec in specs if spec for one in spec.candidates}


class _Plain(nn.Module):
    """Calls a model with some positional inputs, and with others by name."""

    def __init__(self, model: nn.Module, positional: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.positional, self.names = model, positional, names
        self.eval()

    def call(self, *values: Any) -> Any:
        named = dict(zip(self.names, values[self.positional :], strict=True))
        if hasattr(self.model, "config"):
            named["return_dict"] = False
        return self.model(*values[: self.positional], **named)


class _One(_Plain):
    def forward(self, a: Any) -> Any:
        return self.call(a)


class _Two(_Plain):
    def forward(self, a: Any, b: Any) -> Any:
        return self.call(a, b)


PLAIN = {1: _One, 2: _Two}


def _fixed_norms(model: nn.Module, graph: Any) -> list[Any]:
    """Constraints that keep every dimension which a norm normalises."""
    contracts: Any = import_module(f"{PACKAGE}")
    names = [
        f"{path}.{leaf}" for path, layer in model.named_modules() if normalises(layer)
        for leaf, tensor in layer.named_parameters(recurse=False) if tensor.dim() == 1
    ]  # fmt: skip
    return [contracts.Fixed(graph.parameter(name).axis(0)) for name in names]
