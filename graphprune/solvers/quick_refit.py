"""A refit of every linear layer on its own, to the inputs of the dense model: enough to compare plans."""

from collections.abc import Callable, Mapping

from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.ir.program import Program
from graphprune.planning.plan import Rows, by_parameter, primes_to_keep
from graphprune.solvers import new_biases
from graphprune.solvers.normal_equations import DEFAULT_DAMPING, NormalEquations
from graphprune.statistics.moments import Moments


def quickly_refitted(
    program: Program, groups: Mapping[str, Rows], moments_of: Callable[[Consumer], Moments | None]
) -> dict[str, Tensor]:
    """New weights, by name and in their old shapes, of the linear layers that read groups cut to these rows.

    A layer is left out where `moments_of` has no full Gram matrix of its inputs, where several operators share its
    weight, or where its rows retain different indices.
    """
    dependencies = program.fact(Dependencies)
    keep = by_parameter(dependencies, primes_to_keep(dependencies, groups))
    readers = new_biases.count_readers(program)
    consumers = {c.weight: c for name in groups for c in dependencies.consumers_of(dependencies.by_name[name])}
    weights = dict[str, Tensor]()
    for name, consumer in consumers.items():
        retained, moments = keep[name].get(consumer.dim), moments_of(consumer)
        if moments is None or moments.gram.dim() != 2 or retained is None or retained.dim() != 1:
            continue
        if readers[name] == 1:
            weights[name] = _refitted(consumer, program.weights[name], consumer.columns(retained), moments)
    return weights


def _refitted(consumer: Consumer, weight: Tensor, retained: Tensor, moments: Moments) -> Tensor:
    matrix = consumer.matrix(weight).double()
    change = NormalEquations.of(matrix, retained, moments.double()).correction(DEFAULT_DAMPING)
    return consumer.restore(matrix.index_add(1, retained, change).to(weight.dtype)).contiguous()
