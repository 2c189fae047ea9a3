"""The analysis: which axes of the model are free, where they stand, and what each of their indices costs."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd, lcm, prod
from weakref import WeakKeyDictionary

import torch.utils._pytree as pytree
from torch import fx

from graphprune.axes.algebra import Axis, Prime, Product, Sum, primes, resolve
from graphprune.axes.groups import Cost, Dependencies, Group, Pinned, Place, Term
from graphprune.axes.rule_helpers import size_hint
from graphprune.ir.program import Program
from graphprune.passes.analysis.axis_flow import AxisFlow
from graphprune.passes.analysis.exactness import inexact
from graphprune.passes.analysis.labels import Labels
from graphprune.passes.analysis.linked_axes import links
from graphprune.passes.operators import RULES

#: What was found for a graph, as long as the graph lives: planning, cutting and proving all ask for it.
_known: WeakKeyDictionary[fx.Graph, dict[Hashable, Dependencies]] = WeakKeyDictionary()


def analyze(program: Program) -> Dependencies:
    """Find every group of coupled axes of `program`; asked again, the answer is the same object."""
    known, key = _known.setdefault(program.graph, {}), (program.parameters, program.state)
    if key not in known:
        known[key] = analyze_afresh(program)
    return known[key]


def analyze_afresh(program: Program) -> Dependencies:
    """The same, found again."""
    flow = AxisFlow(program).run()
    places = _places(flow)
    averaged = {p: why for axis, why in reversed(flow.averaged) for p in primes(axis)}
    linked = links(flow, places)
    finder = _Finder(flow, places, _inexact(flow), averaged, linked, _leasts(flow), Labels(flow, places, linked))
    groups = tuple(finder.groups())
    return Dependencies(
        groups=groups,
        pinned=tuple(_pinned(flow)),
        opaque=dict(flow.opaque),
        consumers=tuple(flow.consumers),
        values={node.name: value for node, value in flow.values.items() if value is not None},
        tensors=flow.tensors,
        products=tuple(_products(flow)),
        terms={"macs": tuple(_macs(flow)), "kv_cache": tuple(_kept_for_tokens(flow))},
        parameters=frozenset(flow.tensors) & program.parameters,
        because=flow.because,
        kv_cache_bytes=sum(value.bytes_per_token for value in flow.cached()),
    )


@dataclass(frozen=True)
class _Finder:
    """What is known about every prime, gathered into groups."""

    flow: AxisFlow
    places: Mapping[Prime, list[tuple[str, int]]]
    inexact: Mapping[Prime, str]
    averaged: Mapping[Prime, str]
    links: Mapping[Prime, Prime]
    leasts: Mapping[Prime, tuple[int, int]]
    labels: Labels

    def groups(self) -> Iterator[Group]:
        """A group for every free prime that stands in a parameter, in the order of the parameters."""
        free = [p for p, where in self.places.items() if p.size and not p.pins and self._is_in_parameter(where)]
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
                inner=gcd(*(_inner(self.flow.tensors[name][dim], p) for name, dim in self.places[p])),
                least=self.leasts.get(p, (1, 1))[0],
                unit=self.leasts.get(p, (1, 1))[1],
                inexact_because=self.inexact.get(p) or self.averaged.get(p, ""),
                rescaled=p in self.averaged and p not in self.inexact,
                prime=p,
            )

    def _is_in_parameter(self, where: list[tuple[str, int]]) -> bool:
        return any(name in self.flow.program.parameters for name, _ in where)

    def _name(self, p: Prime) -> str:
        """The first parameter and dimension that it stands in, and its position there if it is not alone."""
        first = [place for place in self.places[p] if place[0] in self.flow.program.parameters]
        name, dim = next((w for w in first if "produced" in self.flow.roles[w]), first[0])
        inside = list(dict.fromkeys(primes(self.flow.tensors[name][dim])))
        return f"{name}:{dim}" + (f".{inside.index(p)}" if len(inside) > 1 else "")

    def _place(self, name: str, dim: int) -> Place:
        roles = "+".join(sorted(self.flow.roles[name, dim])) or "carried"
        return Place(name, dim, roles, resolve(self.flow.tensors[name][dim]))


@dataclass(frozen=True)
class Costs:
    """What one index of an axis costs, from the places where it stands."""

    flow: AxisFlow

    def of(self, p: Prime, where: Iterable[tuple[str, int]]) -> Cost:
        """The cost of one index of `p`."""
        own = {name for name, _ in where if name in self.flow.program.parameters}
        parameters = sum(self.flow.numel(name) // p.size for name in own)
        macs = sum(self.flow.numel(name) // p.size * self._uses[name] for name in own)
        return Cost(parameters, macs, self._bytes[p])

    @cached_property
    def _uses(self) -> Counter[str]:
        """How many linear maps there are with each weight."""
        return Counter(consumer.weight for consumer in self.flow.consumers)

    @cached_property
    def _bytes(self) -> Counter[Prime]:
        """Bytes a token of one index, in keys and values as they are before they are repeated for their queries."""
        found: Counter[Prime] = Counter()
        for value in self.flow.cached():
            for p in {p for axis in value.axes for p in primes(axis)}:
                found[p] += value.bytes_per_token // p.size
        return found


def _places(flow: AxisFlow) -> dict[Prime, list[tuple[str, int]]]:
    """Where every prime stands: in which dimensions of which parameters and buffers."""
    places: dict[Prime, list[tuple[str, int]]] = defaultdict(list)
    used = flow.program.names(node for node in flow.program.tensors() if node.users)
    for name, dims in flow.tensors.items():
        for dim, axis in enumerate(dims if name in used else ()):
            for p in dict.fromkeys(primes(axis)):
                places[p].append((name, dim))
    return places


def _products(flow: AxisFlow) -> Iterator[Axis]:
    """The axes that are contracted without a parameter, as those of queries and keys."""
    for axis, operands, _ in flow.contractions:
        if len(operands) > 1 and not any(flow.parameter_of(value) for value in operands):
            yield axis


def _macs(flow: AxisFlow) -> Iterator[Term]:
    """Every weight of a linear map, and how often an element of it is multiplied for the example inputs; and products
    of activations, such as those of attention."""
    nodes = {node.name: node for node in flow.program.graph.nodes}
    for consumer in (c for c in flow.consumers if flow.numel(c.weight)):
        made = pytree.tree_leaves(nodes[consumer.node].meta["val"])[0]
        rows = flow.numel(consumer.weight) / (flow.tensors[consumer.weight][consumer.dim].size * consumer.taps)
        yield Term(flow.tensors[consumer.weight], prod(size_hint(size) for size in made.shape) / rows)
    mapped = {consumer.node for consumer in flow.consumers}
    yield from (Term(axes) for node, axes in flow.multiplied if node.name not in mapped)


def _kept_for_tokens(flow: AxisFlow) -> Iterator[Term]:
    """Keys and values as they are kept for every token: the axes that are not sizes of the input."""
    for value in flow.cached():
        static = tuple(axis for axis in value.axes if not all(p.pins for p in primes(axis)))
        yield Term(static, value.bytes_per_token / prod(axis.size for axis in static))


def _pinned(flow: AxisFlow) -> Iterator[Pinned]:
    """Every pinned prime of a parameter, with its reasons."""
    for name, dims in flow.tensors.items():
        if name not in flow.program.parameters:
            continue
        for dim, axis in enumerate(dims):
            for p in dict.fromkeys(primes(axis)):
                if p.pins:
                    yield Pinned(name, dim, p.size, tuple(p.pins))


def _inexact(flow: AxisFlow) -> dict[Prime, str]:
    """Primes whose cut changes more than zeroing them would, and why."""
    why = {p: reason for axis, reason in reversed(flow.inexact) for p in primes(axis)}
    for p, reason in inexact(flow, RULES):
        why.setdefault(p, reason)
    return why


def _leasts(flow: AxisFlow) -> dict[Prime, tuple[int, int]]:
    """How many indices of a prime must stay, and of what they are a multiple.

    Of a composite enough stay if they do of every prime in it.
    """
    found: dict[Prime, tuple[int, int]] = {}
    for axis, count, unit in flow.leasts:
        for p in primes(axis):
            old, multiple = found.get(p, (1, 1))
            multiple = lcm(multiple, unit)
            found[p] = max(old, min(p.size, max(count, multiple))), multiple
    return found


def _inner(axis: Axis, p: Prime) -> int:
    """How many elements lie inside one index of `p` in a dimension."""
    axis = resolve(axis)
    if isinstance(axis, Product):
        at = next(i for i, part in enumerate(axis.parts) if p in primes(part))
        return prod(part.size for part in axis.parts[at + 1 :]) * _inner(axis.parts[at], p)
    if isinstance(axis, Sum):
        return gcd(*(_inner(part, p) for part in axis.parts if p in primes(part)))
    return 1
