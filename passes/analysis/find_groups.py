"""The analysis of a program: groups of coupled free axes, their dimensions, and the cost of an index."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd, lcm, prod
from weakref import WeakKeyDictionary

import torch.utils._pytree as pytree
from torch import fx

from graphprune.axes.algebra import Axis, Prime, Sum, primes
from graphprune.axes.groups import Cost, Dependencies, Group, Pinned, Place, Term
from graphprune.axes.rule_helpers import size_hint
from graphprune.ir.program import DERIVED, Program
from graphprune.passes.analysis.axis_flow import AxisFlow
from graphprune.passes.analysis.exactness import inexact_primes
from graphprune.passes.analysis.labels import Labels
from graphprune.passes.analysis.linked_axes import links
from graphprune.passes.operators import RULES

#: Results by graph, for the lifetime of the graph: planning, rewriting and verification all use them.
_cache: WeakKeyDictionary[fx.Graph, dict[Hashable, Dependencies]] = WeakKeyDictionary()


def analyze(program: Program) -> Dependencies:
    """Find every group of coupled axes of `program`; repeated calls return the same object."""
    results, key = _cache.setdefault(program.graph, {}), (program.parameters, program.state)
    if key not in results:
        results[key] = analyze_uncached(program)
    return results[key]


DERIVED[Dependencies] = analyze


def analyze_uncached(program: Program) -> Dependencies:
    """Analyze `program` without the cache."""
    flow = AxisFlow(program).run()
    places = _places(flow)
    averaged = {p: why for axis, why in reversed(flow.averaged) for p in primes(axis)}
    linked, least = links(flow, places), _least_widths(flow)
    builder = _GroupBuilder(flow, places, _inexact(flow), averaged, linked, least, Labels(flow, places, linked))
    groups = tuple(builder.groups())
    return Dependencies(
        groups=groups,
        pinned=tuple(_pinned(flow)),
        opaque=dict(flow.opaque),
        consumers=tuple(flow.consumers),
        members=tuple(flow.members),
        contributions=flow.row_partitions.contributions(RULES),
        values={node.name: value for node, value in flow.values.items() if value is not None},
        tensors=flow.tensors,
        products=tuple(_products(flow)),
        terms={"macs": tuple(_mac_terms(flow)), "kv_cache": tuple(_kv_cache_terms(flow))},
        parameters=frozenset(flow.tensors) & program.parameters,
        because=flow.because,
        kv_cache_bytes=sum(value.bytes_per_token for value in flow.cached()),
    )


@dataclass(frozen=True)
class _GroupBuilder:
    """Builds groups from the properties of all primes."""

    flow: AxisFlow
    places: Mapping[Prime, list[tuple[str, int]]]
    inexact: Mapping[Prime, str]
    averaged: Mapping[Prime, str]
    links: Mapping[Prime, Prime]
    leasts: Mapping[Prime, tuple[int, int]]
    labels: Labels

    def groups(self) -> Iterator[Group]:
        """A group for every free prime that occurs in a parameter, in the order of the parameters."""
        free = [p for p, places in self.places.items() if p.size and not p.pins and self._is_in_parameter(places)]
        costs = Costs(self.flow)
        names = {p: self._name(p) for p in free}
        for p in free:
            owner = self.links.get(p)
            yield Group(
                name=names[p],
                label=self.labels.of(p),
                size=p.size,
                places=tuple(self._place(name, dim) for name, dim in self.places[p]),
                exact=p not in self.inexact and p not in self.averaged,
                linked=names.get(owner) if owner else None,
                cost=costs.of(p, self.places[p]),
                inner=gcd(*(self._inner_sizes[place][p] for place in self.places[p])),
                least=self.leasts.get(p, (1, 1))[0],
                unit=self.leasts.get(p, (1, 1))[1],
                inexact_because=self.inexact.get(p) or self.averaged.get(p, ""),
                rescaled=p in self.averaged and p not in self.inexact,
                prime=p,
            )

    def _is_in_parameter(self, places: list[tuple[str, int]]) -> bool:
        return any(name in self.flow.program.parameters for name, _ in places)

    def _name(self, p: Prime) -> str:
        """The first parameter and dimension of a prime, and its position there if it is not the only one."""
        in_parameters = [place for place in self.places[p] if place[0] in self.flow.program.parameters]
        name, dim = next((w for w in in_parameters if "produced" in self.flow.roles[w]), in_parameters[0])
        positions = self._positions[name, dim]
        return f"{name}:{dim}" + (f".{positions[p]}" if len(positions) > 1 else "")

    @cached_property
    def _inner_sizes(self) -> Mapping[tuple[str, int], Mapping[Prime, int]]:
        """Number of elements inside one index of every prime, by dimension."""
        return {(name, dim): _inner_sizes(self.flow.tensors[name][dim]) for name, dim in self._dimensions}

    @cached_property
    def _positions(self) -> Mapping[tuple[str, int], Mapping[Prime, int]]:
        """Position of every prime among those of a dimension."""
        axes = {(name, dim): self.flow.tensors[name][dim] for name, dim in self._dimensions}
        return {place: {p: i for i, p in enumerate(dict.fromkeys(primes(axis)))} for place, axis in axes.items()}

    @cached_property
    def _dimensions(self) -> frozenset[tuple[str, int]]:
        return frozenset(place for places in self.places.values() for place in places)

    def _place(self, name: str, dim: int) -> Place:
        roles = "+".join(sorted(self.flow.roles[name, dim])) or "carried"
        return Place(name, dim, roles, self.flow.tensors[name][dim])


@dataclass(frozen=True)
class Costs:
    """Cost per index of an axis, from the parameters in which it occurs."""

    flow: AxisFlow

    def of(self, p: Prime, places: Iterable[tuple[str, int]]) -> Cost:
        """The cost of one index of `p`."""
        names = {name for name, _ in places if name in self.flow.program.parameters}
        parameters = sum(self.flow.numel(name) // p.size for name in names)
        macs = sum(self.flow.numel(name) // p.size * self._uses[name] for name in names)
        return Cost(parameters, macs, self._bytes[p])

    @cached_property
    def _uses(self) -> Counter[str]:
        """Number of linear operators with each weight."""
        return Counter(consumer.weight for consumer in self.flow.consumers)

    @cached_property
    def _bytes(self) -> Counter[Prime]:
        """Bytes per token of one index, in keys and values before they are repeated for grouped queries."""
        bytes_per_index: Counter[Prime] = Counter()
        for value in self.flow.cached():
            for p in {p for axis in value.axes for p in primes(axis)}:
                bytes_per_index[p] += value.bytes_per_token // p.size
        return bytes_per_index


def _places(flow: AxisFlow) -> dict[Prime, list[tuple[str, int]]]:
    """Dimensions of parameters and buffers in which every prime occurs."""
    places: dict[Prime, list[tuple[str, int]]] = defaultdict(list)
    used = flow.program.names(node for node in flow.program.tensors() if node.users)
    for name, dims in flow.tensors.items():
        for dim, axis in enumerate(dims if name in used else ()):
            for p in dict.fromkeys(primes(axis)):
                places[p].append((name, dim))
    return places


def _products(flow: AxisFlow) -> Iterator[Axis]:
    """Axes that are contracted between activations, such as the head dim of queries and keys."""
    for axis, operands, _ in flow.contractions:
        if len(operands) > 1 and not any(flow.parameter_of(value) for value in operands):
            yield axis


def _mac_terms(flow: AxisFlow) -> Iterator[Term]:
    """Terms of the multiply-accumulates for the example inputs: products that operators count; else weights of linear
    operators, with the number of uses of an element."""
    yield from (Term(axes) for _, axes in flow.multiplied)
    counted = {node.name for node, _ in flow.multiplied}
    nodes = {node.name: node for node in flow.program.graph.nodes}
    for consumer in (c for c in flow.consumers if flow.numel(c.weight) and c.node not in counted):
        output = pytree.tree_leaves(nodes[consumer.node].meta["val"])[0]
        rows = flow.numel(consumer.weight) / (flow.tensors[consumer.weight][consumer.dim].size * consumer.taps)
        yield Term(flow.tensors[consumer.weight], prod(size_hint(size) for size in output.shape) / rows)


def _kv_cache_terms(flow: AxisFlow) -> Iterator[Term]:
    """Terms of the key/value cache in bytes per token: the axes of keys and values that are not sizes of the input."""
    for value in flow.cached():
        static = tuple(axis for axis in value.axes if not all(p.pins for p in primes(axis)))
        yield Term(static, value.bytes_per_token / prod(axis.size for axis in static))


def _pinned(flow: AxisFlow) -> Iterator[Pinned]:
    """Pinned primes of the parameters, with their reasons."""
    for name, dims in flow.tensors.items():
        if name not in flow.program.parameters:
            continue
        for dim, axis in enumerate(dims):
            for p in dict.fromkeys(primes(axis)):
                if p.pins:
                    yield Pinned(name, dim, p.size, tuple(p.pins))


def _inexact(flow: AxisFlow) -> dict[Prime, str]:
    """Primes whose cut differs from zeroing, with the reason."""
    why = {p: reason for axis, reason in reversed(flow.inexact) for p in primes(axis)}
    for p, reason in inexact_primes(flow, RULES):
        why.setdefault(p, reason)
    return why


def _least_widths(flow: AxisFlow) -> dict[Prime, tuple[int, int]]:
    """Least number of retained indices of a prime, and the number of which it must be a multiple.

    A requirement on a composite axis is imposed on each of its primes, which is sufficient.
    """
    least_widths: dict[Prime, tuple[int, int]] = {}
    for axis, count, unit in flow.leasts:
        for p in primes(axis):
            previous, multiple = least_widths.get(p, (1, 1))
            multiple = lcm(multiple, unit)
            least_widths[p] = max(previous, min(p.size, max(count, multiple))), multiple
    return least_widths


def _inner_sizes(axis: Axis) -> dict[Prime, int]:
    """Number of elements inside one index of every prime of a resolved axis; the greatest common divisor of several."""
    if isinstance(axis, Prime):
        return {axis: 1}
    parts = [_inner_sizes(part) for part in axis.parts]
    sizes: dict[Prime, int] = {}
    if isinstance(axis, Sum):
        for p, size in (pair for part in parts for pair in part.items()):
            sizes[p] = gcd(sizes.get(p, 0), size)
        return sizes
    for i in reversed(range(len(parts))):  # of several occurrences the outermost counts
        inside = prod(part.size for part in axis.parts[i + 1 :])
        sizes |= {p: inside * size for p, size in parts[i].items()}
    return sizes
