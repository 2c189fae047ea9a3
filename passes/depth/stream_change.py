"""Importances from the change of the residual stream in a block: ShortGPT's angle, and the relative change."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from graphprune.axes.algebra import primes
from graphprune.axes.groups import Dependencies
from graphprune.axes.residual_blocks import Importance, Unit
from graphprune.axes.rule import Dims
from graphprune.display.progress import progress
from graphprune.execution.segments import Constants, run, split
from graphprune.ir.program import Program
from graphprune.passes.depth import IMPORTANCES
from graphprune.statistics.collector import Calibration


class ShortGpt(Importance):
    """ShortGPT's block influence (arXiv:2403.03853, equation 1): 1 - E cos(x_in, x_out) over all tokens."""

    def importance(self, program: Program, units: Sequence[Unit], without: Callable[[Unit], Program]) -> list[float]:
        """The importance of every unit."""
        return _means(program, units, lambda old, new: 1 - torch.cosine_similarity(old, new, dim=1))


class RelativeChange(Importance):
    """The relative change of the residual stream: E |x_out - x_in| / |x_in|.

    After COMP (arXiv:2501.15255), which drops whole layers by importance before it cuts neurons. Its formula is not
    public; this one is a reconstruction.
    """

    def importance(self, program: Program, units: Sequence[Unit], without: Callable[[Unit], Program]) -> list[float]:
        """The importance of every unit."""
        return _means(program, units, lambda old, new: (new - old).norm(dim=1) / old.norm(dim=1).clamp(min=1e-12))


IMPORTANCES.register("shortgpt")(ShortGpt())
IMPORTANCES.register("comp")(RelativeChange())


def _means(program: Program, units: Sequence[Unit], change: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """The mean over all tokens of the `change` of the stream by each unit, from values of shape (tokens, features)."""
    batches = program.fact(Calibration).batches
    watched = {name for unit in units for name in (unit.entry, unit.exit)}
    totals, counts = [0.0] * len(units), [0] * len(units)
    (whole,), constants = split(program, frozenset()), Constants(program)
    with progress("looking at blocks", len(batches)) as step:
        for leaves in batches:
            with torch.no_grad():
                _, seen = run(whole, program, program.weights, constants.of(leaves), None, watched)
            for i, unit in enumerate(units):
                changes = change(*(_features(program, seen, name) for name in (unit.entry, unit.exit)))
                totals[i] += float(changes.double().sum())
                counts[i] += len(changes)
            step()
    return [total / count for total, count in zip(totals, counts, strict=True)]


def _features(program: Program, seen: Mapping[str, Tensor], name: str) -> Tensor:
    """A value as a matrix of shape (tokens, features): features are the axes over which parameters contract."""
    dependencies = program.fact(Dependencies)
    dims: Dims = dependencies.values[name]  # type: ignore[assignment]
    contracted = {p for consumer in dependencies.consumers for p in primes(consumer.axis)}
    own = [i for i, axis in enumerate(dims) if any(p in contracted for p in primes(axis))] or [len(dims) - 1]
    value = seen[name].float()
    return value.movedim(own, list(range(value.dim() - len(own), value.dim()))).flatten(-len(own)).flatten(0, -2)
