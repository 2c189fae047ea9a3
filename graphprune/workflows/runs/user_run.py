"""User's data, loss and metric in one run: what passes take, and what is measured before and after."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from graphprune.errors import CalibrationError, OptionError, because
from graphprune.frontends.modules import example_call
from graphprune.frontends.python import find
from graphprune.ir.checksums import checksum
from graphprune.ir.program import Inputs, Program
from graphprune.statistics.array_batches import array_batches
from graphprune.statistics.batch_inputs import described, leaves
from graphprune.statistics.user_data import Call, UserData
from graphprune.workflows.options import PruneOptions

NAMED = ("data", "test", "loss", "metric", "forward")


@dataclass(frozen=True)
class UserRun:
    """Data of a user for one module or program; `data` is None where there is none."""

    options: PruneOptions
    data: UserData | None = None
    test: UserData | None = None

    @classmethod
    def of(cls, options: PruneOptions, module: nn.Module | Program) -> "UserRun":
        """Adapt the data in the options, in which all objects are known, to a module.

        Raises:
            CalibrationError: if the data is unusable.
        """
        example = example_call(options.args, options.kwargs or {}, "prune(module")
        kinds = [None if one is None else UserData.of(module, one, options.forward, example=example)  # type: ignore[arg-type]
                 for one in (options.data, options.test)]  # fmt: skip
        return cls(options, *kinds)

    @cached_property
    def calls(self) -> list[Call]:
        """Calls of the batches that scores and refits use.

        Raises:
            CalibrationError: if the data is unusable, or the module does not run on it.
        """
        if self.data is None:
            return []
        calls = self.data.calls(samples=self.options.data_samples)
        self.data.require_running(calls[0])
        return calls

    @property
    def inputs(self) -> Inputs:
        """Example inputs: those of the user, or those of the first batch."""
        if self.options.args or self.options.kwargs or self.data is None:
            return self.options.args, self.options.kwargs or {}
        return self.calls[0].args, self.calls[0].kwargs

    @property
    def for_passes(self) -> dict[str, Any]:
        """Options of passes: batches, and the loss of an output by the number of its batch."""
        if self.data is None:
            return {}
        known = self.options.loss
        loss: Callable[[Any, int], Tensor] | None = self.data.loss(known, self.calls) if callable(known) else None
        return {"batches": tuple((call.args, call.kwargs) for call in self.calls), "loss": loss}

    @property
    def source(self) -> str:
        """Description of the data for the report."""
        samples = sum(call.size for call in self.calls)
        return f"{samples} samples of the user's data: batches {described(self.calls[0].batch)}"

    @property
    def identity(self) -> str:
        """Checksum of the batches, which the outcome of a run depends on."""
        return checksum([tensor for call in self.calls for _, tensor in leaves(call.batch)])

    def measured(self, model: nn.Module) -> float | None:
        """Mean of the metric over the test batches, or all data; None without a metric.

        Raises:
            CalibrationError: if the metric fails.
        """
        data, metric = self.test or self.data, self.options.metric
        return data.mean(metric, model) if data is not None and callable(metric) else None

    def metric_values(self, model: nn.Module) -> list[tuple[float, int]]:
        """Metric of every test batch, and the number of its samples; empty without a metric.

        Raises:
            CalibrationError: if the metric fails.
        """
        data, metric = self.test or self.data, self.options.metric
        return data.values(metric, model) if data is not None and callable(metric) else []

    def metrics(self, before: float | None, after: float | None) -> Mapping[str, tuple[float, float]]:
        """Metric before and after, by its name."""
        if before is None or after is None:
            return {}
        name = getattr(self.options.metric, "__name__", "metric")
        name = "metric" if name == "<lambda>" else name
        return {f"{name}{'' if self.test else ' on the data of the run'}": (before, after)}


def with_objects(options: PruneOptions) -> PruneOptions:
    """Options with the objects that ``package.module:name``, or a file of arrays, stands for.

    Raises:
        LoadError: if one cannot be imported.
        OptionError: if one is of another kind.
        CalibrationError: if the function of data fails.
    """
    texts = {name: text for name in NAMED if isinstance(text := getattr(options, name), str)}
    return replace(options, **{name: _object(name, text) for name, text in texts.items()})


def _object(name: str, text: str) -> Any:
    if name in ("data", "test") and text.endswith(".npz"):
        return array_batches(Path(text))
    value = find(text)
    if name in ("data", "test"):
        return _loader(value, text) if callable(value) else value
    if not callable(value):
        raise OptionError(f"{name} must be a function, and {text} is a {type(value).__name__}")
    return value


def _loader(function: Callable[[], Any], text: str) -> Any:
    """Batches that a function returns; the function itself, if it has to be called for every pass over them."""
    try:
        made = function()
    except Exception as fault:  # code of a user may raise anything
        raise CalibrationError(f"{text} fails{because(fault)}; expected a function that returns batches") from fault
    return function if isinstance(made, Iterator) else made
