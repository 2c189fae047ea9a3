"""Reuse of values of the original segment in the pruned one, on the same inputs.

Where a cut removes indices of a value and does not change the others, the pruned value is the narrowed original one.
Then a refit runs the original segment only up to the inputs of the refitted layers, and the pruned one from there on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Dependencies
from graphprune.axes.index_sets import Retained
from graphprune.axes.rule import Consumer
from graphprune.execution.segments import Segment
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import narrow
from graphprune.planning.plan import indices_along


@dataclass(frozen=True)
class Reuse:
    """The parts of a segment: `early` is run in the original, `rest` in the pruned program, from the values `retained`.

    `retained` has for each value, by name, the retained indices of its cut dimensions, the last dimension first.
    """

    early: Segment
    rest: Segment
    retained: Mapping[str, Mapping[int, Tensor]]

    def narrowed(self, name: str, value: Tensor) -> Tensor:
        """The value in the pruned segment."""
        for dim, indices in self.retained[name].items():
            value = narrow(value, dim, indices)
        return value.contiguous()


def reusable(
    program: Program, segment: Segment, consumers: Sequence[Consumer], keep: Mapping[Prime, Retained]
) -> Reuse | None:
    """The parts of a segment of the original of `program`; None if a cut changes the inputs of its `consumers`."""
    rewritten = program.fact(Rewritten)
    dependencies = rewritten.original.fact(Dependencies)
    rest = segment.downstream_of({consumer.node for consumer in consumers})
    late = rest.names
    if segment.exit is None or segment.exit.name not in late or _cut_in(segment.exit, dependencies, keep):
        return None
    own = {node.name for node in segment.nodes} - late
    needed = {n.name: n for node in rest.nodes for n in node.all_input_nodes if n.name in own}
    early = segment.upstream_of(needed)
    scaled = early.weights(program) & rewritten.scales.keys()
    if (
        scaled
        or any(_varies(node, dependencies, keep) for node in needed.values())
        or not all(_carries(node, dependencies, keep) for node in early.nodes)
    ):
        return None
    return Reuse(early, rest, {name: dict(_indices(node, dependencies, keep)) for name, node in needed.items()})


def _carries(node: fx.Node, dependencies: Dependencies, keep: Mapping[Prime, Retained]) -> bool:
    """Whether a node passes on the cut axes of its inputs index by index."""
    read = {p for source in node.all_input_nodes for p in _cut_in(source, dependencies, keep)}
    cut = _cut_in(node, dependencies, keep)
    return read <= cut and all(dependencies.by_prime[p].exact for p in cut)


def _varies(node: fx.Node, dependencies: Dependencies, keep: Mapping[Prime, Retained]) -> bool:
    """Whether the rows of a value retain different indices, as those of different experts do."""
    cut = _cut_in(node, dependencies, keep)
    owners = {keep[p].owner for p in cut} - {None}
    return not owners <= {p for axis in dependencies.axes_of(node.name) for p in primes(axis)}


def _cut_in(node: fx.Node, dependencies: Dependencies, keep: Mapping[Prime, Retained]) -> set[Prime]:
    """The cut primes in the axes of a value."""
    return {p for axis in dependencies.axes_of(node.name) for p in primes(axis) if p in keep}


def _indices(node: fx.Node, dependencies: Dependencies, keep: Mapping[Prime, Retained]) -> Iterator[tuple[int, Tensor]]:
    """The retained indices of the cut dimensions of a value, the last dimension first."""
    dims = dependencies.axes_of(node.name)
    for dim in reversed(range(len(dims))):
        if any(p in keep for p in primes(dims[dim])):
            yield dim, indices_along(dims, dim, keep)
