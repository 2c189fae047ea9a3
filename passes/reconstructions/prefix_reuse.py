"""What a pruned segment need not compute again, since the original has done so on the same inputs.

Where a cut only leaves out indices of a value, and does not change the others, the pruned value is the narrowed one.
Then a walk of a refit runs the original only as far as what the refitted maps read, and the pruned segment from there.
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
from graphprune.planning.plan import kept_beside


@dataclass(frozen=True)
class Reuse:
    """`early` is the part of a segment to run as it was, `rest` the one that goes on from the values named in `kept`.

    `kept` has for each of them what stays of the dimensions that are cut, the last dimension first.
    """

    early: Segment
    rest: Segment
    kept: Mapping[str, Mapping[int, Tensor]]

    def narrowed(self, name: str, value: Tensor) -> Tensor:
        """What the pruned segment would make."""
        for dim, indices in self.kept[name].items():
            value = narrow(value, dim, indices)
        return value.contiguous()


def reusable(
    program: Program, segment: Segment, consumers: Sequence[Consumer], keep: Mapping[Prime, Retained]
) -> Reuse | None:
    """How to run a segment of the original of `program`; None if a cut changes what its `consumers` read."""
    rewritten = program.fact(Rewritten)
    dependencies = rewritten.original.fact(Dependencies)
    late = _after(segment, {consumer.node for consumer in consumers})
    if segment.exit is None or segment.exit.name not in late or _cut_in(segment.exit, dependencies, keep):
        return None
    own = {node.name for node in segment.nodes} - late
    needed = {n.name: n for node in segment.nodes if node.name in late for n in node.all_input_nodes if n.name in own}
    early = segment.upstream_of(needed)
    scaled = early.weights(program) & rewritten.scales.keys()
    if scaled or not all(_carries(node, dependencies, keep) for node in early.nodes):
        return None
    rest = Segment(tuple(node for node in segment.nodes if node.name in late), segment.entry, segment.exit)
    return Reuse(early, rest, {name: dict(_indices(node, dependencies, keep)) for name, node in needed.items()})


def _after(segment: Segment, names: set[str]) -> set[str]:
    """The nodes of these names, and all that read what they make."""
    found = set(names)
    for node in segment.nodes:
        if any(n.name in found for n in node.all_input_nodes):
            found.add(node.name)
    return found


def _carries(node: fx.Node, dependencies: Dependencies, keep: Mapping[Prime, Retained]) -> bool:
    """Does a node only hand on what is cut of its inputs, index by index?"""
    read = {p for source in node.all_input_nodes for p in _cut_in(source, dependencies, keep)}
    made = _cut_in(node, dependencies, keep)
    return read <= made and all(dependencies.by_prime[p].exact for p in made)


def _cut_in(node: fx.Node, dependencies: Dependencies, keep: Mapping[Prime, Retained]) -> set[Prime]:
    """The primes in the axes of a value that are cut."""
    return {p for axis in dependencies.axes_of(node.name) for p in primes(axis) if p in keep}


def _indices(node: fx.Node, dependencies: Dependencies, keep: Mapping[Prime, Retained]) -> Iterator[tuple[int, Tensor]]:
    """What stays of the dimensions of a value that are cut, the last one first."""
    dims = dependencies.axes_of(node.name)
    for dim in reversed(range(len(dims))):
        if any(p in keep for p in primes(dims[dim])):
            yield dim, kept_beside(dims, dim, keep)
