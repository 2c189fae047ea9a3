"""A refit of every linear layer on its own, to the inputs of the dense model: enough to compare plans."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.ir.program import Program
from graphprune.ir.weights import DerivedWeights, Renamed
from graphprune.planning.plan import Rows, by_parameter, primes_to_keep
from graphprune.solvers import new_biases
from graphprune.solvers.normal_equations import DEFAULT_DAMPING, NormalEquations
from graphprune.statistics.moments import Moments


@dataclass(frozen=True)
class QuickRefits(DerivedWeights):
    """Weights of `base` in their old shapes, refitted whenever they are read.

    Each of the `fits` has the layer, the columns that it retains, and the moments of its inputs.
    """

    fits: Mapping[str, tuple[Consumer, Tensor, Moments]]

    def __getitem__(self, name: str) -> Tensor:
        consumer, retained, moments = self.fits[name]
        weight = self.base[name]
        matrix = consumer.matrix(weight).double()
        change = NormalEquations.of(matrix, retained, moments.double()).correction(DEFAULT_DAMPING)
        return consumer.restore(matrix.index_add(1, retained, change).to(weight.dtype)).contiguous()


def quickly_refitted(
    program: Program, groups: Mapping[str, Rows], moments_of: Callable[[Consumer], Moments | None]
) -> QuickRefits:
    """New weights, by name and in their old shapes, of the linear layers that read groups cut to these rows.

    A layer is left out where `moments_of` has no full Gram matrix of its inputs, where several operators share its
    weight, or where its rows retain different indices.
    """
    dependencies = program.fact(Dependencies)
    keep = by_parameter(dependencies, primes_to_keep(dependencies, groups))
    readers = new_biases.count_readers(program)
    consumers = {c.weight: c for name in groups for c in dependencies.consumers_of(dependencies.by_name[name])}
    fits = dict[str, tuple[Consumer, Tensor, Moments]]()
    for name, consumer in consumers.items():
        retained, moments = keep[name].get(consumer.dim), moments_of(consumer)
        if moments is None or moments.gram.dim() != 2 or retained is None or retained.dim() != 1:
            continue
        if readers[name] == 1:
            fits[name] = consumer, consumer.columns(retained), moments
    return QuickRefits(Renamed(program.weights, {name: name for name in fits}), fits)
