"""torch-kirigami 0.2, as its README ("Quick start") and docs/getting-started.md use it.

Candidates are discovered, ranked by magnitude, and removed until a budget is met, which raises where it cannot be: so
smaller budgets are tried too. Norms are left out by `constraints`, which fix their axes. It captures with torch.fx,
which stumbles over forwards with many optional arguments; so a model that it refuses is offered once more, inside a
module that takes only the inputs that are given.
"""

from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from tools.zoo_benchmark.judge import Inputs
from tools.zoo_benchmark.peers import Prune, normalises, run_all
from tools.zoo_benchmark.record import Report
from tools.zoo_benchmark.subject import Subject

NAME = "torch-kirigami"
PACKAGE = "torch_kirigami"
SMALLER = (1.0, 0.4, 0.1)  # of the ratio that is asked for


def run(subject: Subject, report: Report, ratio: float) -> None:
    """Prune by magnitude, a share of every width or of all parameters, with and without what norms normalise."""
    modes: dict[str, Prune] = {
        "channels, no norms": partial(_prune, norms=False, channels=True),
        "parameters, no norms": partial(_prune, norms=False, channels=False),
        "channels": partial(_prune, norms=True, channels=True),
        "parameters": partial(_prune, norms=True, channels=False),
    }
    run_all(modes, subject, report, ratio)


def _prune(model: nn.Module, example: Inputs, ratio: float, *, norms: bool, channels: bool) -> None:
    """Prune a model in place.

    Raises:
        Exception: the tool's own, if it cannot capture the model or meet even the smallest budget.
    """
    graphs: Any = import_module(PACKAGE)
    tools: Any = import_module(f"{PACKAGE}.pruning")
    try:
        graph = graphs.DependencyGraph.build(model, args=example[0], kwargs=dict(example[1]))
    except graphs.CaptureError:
        model = PLAIN[len(example[0]) + len(example[1])](model, len(example[0]), tuple(example[1]))
        graph = graphs.DependencyGraph.build(model, args=(*example[0], *example[1].values()))
    pruner = tools.Pruner(model, graph=graph, constraints=[] if norms else _fixed_norms(model, graph))
    space = pruner.discover_candidates()
    strategy = tools.Greedy(tools.GroupMagnitude(p=2))
    for part in SMALLER:
        share = ratio * part
        budget = tools.ChannelRatio(share) if channels else tools.ParameterBudget.from_ratio(model, share)
        try:
            pruner.prune(space, budget=budget, strategy=strategy)
            return
        except tools.PlanningError:
            if part == SMALLER[-1]:
                raise


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
