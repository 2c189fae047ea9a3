"""What the analysis found: groups of coupled axes, pinned axes, and the axes of every value."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

import networkx as nx

from graphprune.axes.algebra import Axis, Prime, flatten_outputs, primes
from graphprune.axes.explanations import Dimension, DimensionPart, Explanation, Freedom, FreedomCounts, Reason
from graphprune.axes.index_sets import width
from graphprune.axes.name_globs import hint, kind, matching
from graphprune.axes.rule import Consumer, Dims
from graphprune.display import html
from graphprune.display.text_table import text_table
from graphprune.errors import RegistryError

#: Titles of a table of `Dependencies.alike`.
COLUMNS = ("indices", "group", "times", "size", "can be cut", "linked", "parameters an index")


@dataclass(frozen=True)
class Cost:
    """What one index costs: parameters, multiply-accumulates an input token or pixel batch, cache bytes a token."""

    parameters: int
    macs: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class Place:
    """Where a group stands: a dimension of a parameter, and its role there.

    `axis` is the structure of the whole dimension. Roles: ``produced`` (rows that make it), ``contracted``
    (columns that consume it), ``carried`` (a bias, a norm, a depthwise kernel), joined by ``+`` where a shared
    parameter has several.
    """

    parameter: str
    dim: int
    role: str
    axis: Axis = field(repr=False)


@dataclass(frozen=True)
class Group:
    """A free axis of the model: it can be narrowed everywhere at once.

    `label` says what its indices are: neurons, KV heads, query heads per KV head, rotary pairs, value dimensions,
    experts, channels, hidden size and the like; width, where the graph does not tell.
    `exact`: cutting an index equals zeroing it. `rescaled`: it does once averages over the axis, which have fewer
    terms, are scaled back; the rewrite does that, and an RMS norm's weights take the factor. `linked`: the name of
    the group around it each of whose indices may keep other indices of this one. `inexact_because` says what
    normalises or mixes over it. `inner` is how many elements lie inside one index in every dimension in which the
    group stands (the greatest common divisor), `least` how many indices must stay, a multiple of
    `unit`.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    exact: bool
    linked: str | None
    cost: Cost
    inner: int
    least: int
    unit: int
    inexact_because: str
    rescaled: bool
    prime: Prime = field(repr=False)
    label: str = "width"

    @property
    def lawful(self) -> bool:
        """Must the cut give the numbers of the masked original?"""
        return self.exact or self.rescaled

    @property
    def freedom(self) -> Freedom:
        """How it can be cut."""
        return Freedom.EXACT if self.exact else Freedom.RESCALED if self.rescaled else Freedom.INEXACT

    @property
    def kind(self) -> str:
        """The name without layer numbers: groups of one kind do the same job in different layers."""
        return kind_of(self.name)

    @property
    def layer(self) -> str:
        """The layer numbers in the name: groups of one layer have the same."""
        return layer_of(self.name)


def kind_of(group: str) -> str:
    """The name of a group without layer numbers."""
    path, _, place = group.rpartition(":")
    return f"{kind(path)}:{place}"


def layer_of(group: str) -> str:
    """The layer numbers in the name of a group."""
    return ".".join(part for part in group.rpartition(":")[0].split(".") if part.isdigit())


class Alike(NamedTuple):
    """What groups have in common that do the same in different layers."""

    label: str
    name: str
    size: int
    freedom: Freedom
    linked: bool
    parameters: int  # an index


@dataclass(frozen=True)
class Pinned:
    """An axis of a parameter that must stay as it is, and why."""

    parameter: str
    dim: int
    size: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Term:
    """What a budget sums up: `factor` for every element of a tensor with these axes."""

    dims: Dims
    factor: float = 1.0

    def at(self, widths: Mapping[Prime, float]) -> float:
        """What it comes to at these widths of primes, fractions allowed."""
        return self.factor * prod(width(axis, widths) for axis in self.dims)


@dataclass(frozen=True)
class Curve(Term):
    """`factor`, times a measured share for every axis: `points` of its widths and shares, rising, to interpolate."""

    points: Sequence[Sequence[tuple[int, float]]] = ()

    def at(self, widths: Mapping[Prime, float]) -> float:
        """What it comes to at these widths of primes, fractions allowed."""
        pairs = zip(self.dims, self.points, strict=True)
        return self.factor * prod(between(points, width(axis, widths)) for axis, points in pairs)


def between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value on straight lines through points; outside of them that of the nearest."""
    i = bisect_right([x for x, _ in points], at)
    if not 0 < i < len(points):
        return points[min(i, len(points) - 1)][1]
    (a, low), (b, high) = points[i - 1 : i + 1]
    return low + (high - low) * (at - a) / (b - a)


@dataclass(frozen=True)
class Dependencies:
    """The result of the analysis.

    `values` holds the axes of every node; `tensors` those of every parameter and buffer; `opaque` the operators
    without a rule, with how often they occur; `products` the axes over which two activations are multiplied and summed.
    `terms` say what a budget may be in besides parameters: of ``macs`` those of all weights, an element counting as
    often as it is multiplied for the example inputs, and those of products of two activations; of ``kv_cache`` keys
    and values, in bytes a token.
    `parameters` are the tensors that are no buffers; `because` maps the texts that say why to what they are made of.
    `kv_cache_bytes` are those of the keys and values that a token adds to a cache.
    """

    groups: Sequence[Group]
    pinned: Sequence[Pinned]
    opaque: Mapping[str, int]
    consumers: Sequence[Consumer]
    values: Mapping[str, Dims | list[Dims]] = field(repr=False)
    tensors: Mapping[str, Dims] = field(repr=False)
    products: Sequence[Axis] = field(repr=False)
    parameters: frozenset[str] = field(repr=False)
    because: Mapping[str, Reason] = field(repr=False)
    kv_cache_bytes: int = 0
    terms: Mapping[str, Sequence[Term]] = field(default_factory=dict, repr=False)

    @cached_property
    def by_name(self) -> Mapping[str, Group]:
        """The groups by their names."""
        return {group.name: group for group in self.groups}

    @cached_property
    def by_prime(self) -> Mapping[Prime, Group]:
        """The groups by their axes."""
        return {group.prime: group for group in self.groups}

    def axes_of(self, node: str) -> list[Axis]:
        """The axes of what a node makes, of one output after the other."""
        return flatten_outputs(self.values.get(node, ()))

    def explain(self, pattern: str = "*") -> tuple[Explanation, ...]:
        """Every parameter with this name, or whose name matches this glob: how it can be cut, and why not better.

        Raises:
            RegistryError: if there is none.
        """
        names = [name for name in self.tensors if name in self.parameters]
        found = matching(pattern, names)
        if not found and (names or pattern != "*"):
            raise RegistryError(f"no parameter {pattern!r}; {hint(pattern, names)}")
        return tuple(map(self.explanation, found))

    def explanation(self, name: str) -> Explanation:
        """How a tensor of this very name, a parameter or a buffer, can be cut, and why not better."""
        return Explanation(name, tuple(Dimension.of(axis, self._part) for axis in self.tensors[name]))

    @cached_property
    def freedom(self) -> FreedomCounts:
        """How many of the parameters can be cut, and how many could go at most."""
        counts = dict.fromkeys(Freedom, 0)
        sizes = {name: prod(axis.size for axis in dims) for name, dims in self.tensors.items()}
        for explanation in self.explain():
            counts[explanation.freedom] += sizes[explanation.parameter]
        free = [freedom for freedom in Freedom if freedom is not Freedom.PINNED]
        total = sum(counts.values())
        return FreedomCounts(total, counts, {f: total - self._least({*free[: i + 1]}) for i, f in enumerate(free)})

    def _least(self, freedoms: set[Freedom]) -> int:
        """How many parameters are left when all groups of these freedoms are as narrow as they may be."""
        widths = {group.prime: group.least for group in self.groups if group.freedom in freedoms}
        return sum(prod(width(axis, widths) for axis in self.tensors[name]) for name in self.parameters)

    def _part(self, p: Prime) -> DimensionPart:
        group = self.by_prime.get(p)
        if group is None:
            reasons = tuple(map(self._reason, p.pins)) or (Reason("nothing reads it"),)
            return DimensionPart(p.size, Freedom.PINNED, "", reasons)
        reasons = (self._reason(group.inexact_because),) if group.inexact_because else ()
        return DimensionPart(p.size, group.freedom, group.name, reasons)

    def _reason(self, text: str) -> Reason:
        return self.because.get(text) or Reason(text)

    def consumers_of(self, group: Group) -> list[Consumer]:
        """Where a parameter contracts the group."""
        return self._consumers.get(group.prime, [])

    def producers_of(self, group: Group) -> list[Consumer]:
        """The linear maps that make the group; it stands in another dimension of their weight than the contracted."""
        rows = {(place.parameter, place.dim) for place in group.places if "produced" in place.role}
        return [c for c in self.consumers if any(name == c.weight and dim != c.dim for name, dim in rows)]

    def maps_of(self, groups: Sequence[Group], producers: bool = False) -> list[Consumer]:
        """The linear maps that contract one of the groups, and with `producers` also those that make one."""
        found = {c.node for group in groups for c in self.consumers_of(group)}
        found |= {c.node for group in groups for c in self.producers_of(group)} if producers else set()
        return [c for c in self.consumers if c.node in found]

    @cached_property
    def _consumers(self) -> Mapping[Prime, list[Consumer]]:
        found: dict[Prime, list[Consumer]] = {}
        for consumer in self.consumers:
            for p in dict.fromkeys(primes(consumer.axis)):
                found.setdefault(p, []).append(consumer)
        return found

    def to_networkx(self) -> "nx.MultiDiGraph[str]":
        """Groups, and the tensors in which they stand, as nodes; every place of a group as an edge.

        Attributes of every node: ``kind`` ("group", "parameter" or "buffer"), ``freedom`` (how it can be cut: a value
        of `Freedom`). Of groups: ``label`` (what its indices are), ``type`` (its name without layer numbers), ``layer``
        (those numbers), ``size``, ``least`` (how many indices must stay), ``exact``, ``rescaled``, ``linked`` (the
        group around it that may choose its indices; empty if there is none), ``places`` (in how many dimensions it
        stands), and ``parameters``, ``macs`` and ``kv_cache_bytes`` an index. Of tensors: ``shape`` (as in "576x1536"),
        ``elements``.

        An edge runs from the tensor that produces a group to the group, and from the group to a tensor that contracts
        or carries it. Attributes: ``dim`` (of the tensor, from 0; the key of the edge too) and ``role`` (see `Place`).
        """
        graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        for name, dims in self.tensors.items():
            sizes = [axis.size for axis in dims]
            graph.add_node(
                name, kind="parameter" if name in self.parameters else "buffer", shape="x".join(map(str, sizes)),
                elements=prod(sizes), freedom=str(self.explanation(name).freedom),
            )  # fmt: skip
        for group in self.groups:
            graph.add_node(
                group.name, kind="group", label=group.label, freedom=str(group.freedom), type=group.kind,
                layer=group.layer,
                size=group.size, least=group.least, exact=group.exact, rescaled=group.rescaled,
                linked=group.linked or "", places=len(group.places),
                parameters=group.cost.parameters, macs=group.cost.macs, kv_cache_bytes=group.cost.kv_cache_bytes,
            )  # fmt: skip
            for place in group.places:
                ends = (place.parameter, group.name) if "produced" in place.role else (group.name, place.parameter)
                graph.add_edge(*ends, key=place.dim, dim=place.dim, role=place.role)
        return graph

    @cached_property
    def alike(self) -> Mapping[Alike, int]:
        """How many groups there are that are alike; one of its kind has its own name."""
        found: dict[Alike, list[Group]] = {}
        for g in self.groups:
            key = Alike(g.label, g.kind, g.size, g.freedom, g.linked is not None, g.cost.parameters)
            found.setdefault(key, []).append(g)
        return {
            key._replace(name=groups[0].name) if len(groups) == 1 else key: len(groups) for key, groups in found.items()
        }

    def _repr_html_(self) -> str:
        return html.part("dependencies.html", shares=self.freedom, found=self)

    def __str__(self) -> str:
        head = f"groups that can be cut: {len(self.groups)}, axes that cannot: {len(self.pinned)}"
        tail = (
            [f"without a rule: {', '.join(f'{name} x{n}' for name, n in self.opaque.items())}"] if self.opaque else []
        )
        rows = [
            (label, name, n, size, freedom, "yes" if linked else "-", cost)
            for (label, name, size, freedom, linked, cost), n in self.alike.items()
        ]
        return "\n".join([head, *text_table(rows, COLUMNS), *tail])

    __repr__ = __str__
