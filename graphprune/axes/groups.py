"""Result of the analysis: groups of coupled axes, pinned axes, and the axes of every value."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

import networkx as nx

from graphprune.axes.algebra import Axis, Prime, flatten_outputs, primes, resolve
from graphprune.axes.contributions import Contribution
from graphprune.axes.explanations import Dimension, DimensionPart, Explanation, Freedom, FreedomCounts, Reason
from graphprune.axes.index_sets import resolved_width, width
from graphprune.axes.name_globs import hint, kind, matching
from graphprune.axes.rule import Consumer, Dims
from graphprune.display import html
from graphprune.display.text_table import text_table
from graphprune.errors import RegistryError

#: Titles of a table of `Dependencies.alike`.
COLUMNS = ("indices", "group", "times", "size", "can be cut", "linked", "parameters an index")


#: Labels of groups whose indices a router chooses for every token.
EXPERTS = ("experts", "expert groups", "experts per group")


@dataclass(frozen=True)
class Cost:
    """Cost per index: parameters, multiply-accumulates per input token or pixel batch, and cache bytes per token."""

    parameters: int
    macs: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class Place:
    """Place of a group: a dimension of a parameter, and the role of the group in it.

    `axis` is the structure of the whole dimension. Roles: ``produced`` (rows that compute it), ``contracted``
    (columns that consume it), ``carried`` (a bias, a norm, a depthwise kernel), joined by ``+`` where a shared
    parameter has several.
    """

    parameter: str
    dim: int
    role: str
    axis: Axis = field(repr=False)


@dataclass(frozen=True)
class Group:
    """Group of coupled axes, which can only be pruned together.

    `label` is the kind of its indices: neurons, KV heads, query heads per KV head, rotary pairs, value dimensions,
    experts, channels, hidden size and the like; width, where the graph does not determine it.
    `exact`: cutting an index equals zeroing it. `rescaled`: it does once averages over the axis, which have fewer
    terms, are scaled back; the rewrite does that, and the weights of an RMS norm absorb the factor. `linked`: the name
    of the outer group each of whose indices may retain other indices of this one. `inexact_because` is the operation
    that normalizes or mixes over it. `inner` is the number of elements per index in every dimension of the group (the
    greatest common divisor); `least` is the minimum number of retained indices, a multiple of `unit`.
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
    def maskable(self) -> bool:
        """Whether the cut must give the numbers of the masked original."""
        return self.exact or self.rescaled

    @property
    def routed(self) -> bool:
        """Whether a router chooses its indices: the cut must give the numbers of one that never chooses those."""
        return self.label in EXPERTS and not self.maskable

    @property
    def freedom(self) -> Freedom:
        """Degree to which it can be cut."""
        return Freedom.EXACT if self.exact else Freedom.RESCALED if self.rescaled else Freedom.INEXACT

    @property
    def kind(self) -> str:
        """Name without layer numbers: groups of one kind have the same role in different layers."""
        return kind_of(self.name)

    @property
    def layer(self) -> str:
        """Layer numbers in the name, which all groups of a layer share."""
        return layer_of(self.name)


def kind_of(group: str) -> str:
    """Name of a group without layer numbers."""
    path, _, place = group.rpartition(":")
    return f"{kind(path)}:{place}"


def layer_of(group: str) -> str:
    """Layer numbers in the name of a group."""
    return ".".join(part for part in group.rpartition(":")[0].split(".") if part.isdigit())


class Alike(NamedTuple):
    """Common properties of groups with the same role in different layers."""

    label: str
    name: str
    size: int
    freedom: Freedom
    linked: bool
    parameters: int  # per index


@dataclass(frozen=True)
class Pinned:
    """Axis of a parameter that cannot be cut, with the reasons."""

    parameter: str
    dim: int
    size: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Term:
    """Term of a budget: `factor` for every element of a tensor with these axes."""

    dims: Dims
    factor: float = 1.0

    def at(self, widths: Mapping[Prime, float]) -> float:
        """Value at these widths of primes, fractions allowed."""
        return self.factor * prod(resolved_width(axis, widths) for axis in self.resolved)

    @cached_property
    def resolved(self) -> Dims:
        """The axes in their final form, which the analysis leaves."""
        return tuple(resolve(axis) for axis in self.dims)


@dataclass(frozen=True)
class Curve(Term):
    """Term with a measured share for every axis: ascending `points` of widths and shares are interpolated."""

    points: Sequence[Sequence[tuple[int, float]]] = ()

    def at(self, widths: Mapping[Prime, float]) -> float:
        """Value at these widths of primes, fractions allowed."""
        pairs = zip(self.resolved, self.points, strict=True)
        return self.factor * prod(between(points, resolved_width(axis, widths)) for axis, points in pairs)


def between(points: Sequence[tuple[float, float]], at: float) -> float:
    """Linear interpolation between points; outside of them the value of the nearest."""
    i = bisect_right([x for x, _ in points], at)
    if not 0 < i < len(points):
        return points[min(i, len(points) - 1)][1]
    (a, low), (b, high) = points[i - 1 : i + 1]
    return low + (high - low) * (at - a) / (b - a)


@dataclass(frozen=True)
class Dependencies:
    """Result of the analysis.

    `values` holds the axes of every node, `tensors` those of every parameter and buffer, `opaque` the number of calls
    of each operator without a rule, and `products` the axes over which two activations are multiplied and summed.
    `terms` define budgets other than parameters: ``macs`` counts how often each element of a weight is multiplied for
    the example inputs, and products of two activations; ``kv_cache`` counts keys and values, in bytes per token.
    `parameters` are the tensors that are no buffers; `because` has the full reason for each text of a reason.
    `members` are the linear operators of stacks, such as experts, which are no `consumers`.
    `contributions` are the rows that indices chosen by a router add to the result.
    `kv_cache_bytes` are the bytes of keys and values that a token adds to a cache.
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
    members: Sequence[Consumer] = field(default=(), repr=False)
    contributions: Sequence[Contribution] = field(default=(), repr=False)

    @cached_property
    def by_name(self) -> Mapping[str, Group]:
        """Groups by their names."""
        return {group.name: group for group in self.groups}

    @cached_property
    def by_prime(self) -> Mapping[Prime, Group]:
        """Groups by their axes."""
        return {group.prime: group for group in self.groups}

    def axes_of(self, node: str) -> list[Axis]:
        """Axes of the value of a node, those of several outputs one after the other."""
        return flatten_outputs(self.values.get(node, ()))

    def explain(self, pattern: str = "*") -> tuple[Explanation, ...]:
        """Explanations of the parameters with this name, or whose names match this glob.

        Raises:
            RegistryError: if no parameter matches.
        """
        names = [name for name in self.tensors if name in self.parameters]
        matches = matching(pattern, names)
        if not matches and (names or pattern != "*"):
            raise RegistryError(f"no parameter {pattern!r}; {hint(pattern, names)}")
        return tuple(map(self.explanation, matches))

    def explanation(self, name: str) -> Explanation:
        """Explanation of the parameter or buffer with exactly this name."""
        return Explanation(name, tuple(Dimension.of(axis, self._part) for axis in self.tensors[name]))

    @cached_property
    def freedom(self) -> FreedomCounts:
        """Numbers of parameters by freedom, and the numbers that can be removed at most."""
        counts = dict.fromkeys(Freedom, 0)
        sizes = {name: prod(axis.size for axis in dims) for name, dims in self.tensors.items()}
        for explanation in self.explain():
            counts[explanation.freedom] += sizes[explanation.parameter]
        free = [freedom for freedom in Freedom if freedom is not Freedom.PINNED]
        total = sum(counts.values())
        return FreedomCounts(total, counts, {f: total - self._least({*free[: i + 1]}) for i, f in enumerate(free)})

    def _least(self, freedoms: set[Freedom]) -> int:
        """Number of parameters when all groups of these freedoms have their least width."""
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
        """Linear operators that contract the group."""
        return self._consumers.get(group.prime, [])

    def members_of(self, group: Group) -> list[Consumer]:
        """Members of stacks of linear operators that contract the group."""
        return self._members.get(group.prime, [])

    def stacked(self, groups: Sequence[Group]) -> list[Consumer]:
        """Members of stacks of linear operators that contract one of the groups."""
        keys = {c.key for group in groups for c in self.members_of(group)}
        return [c for c in self.members if c.key in keys]

    def producers_of(self, group: Group) -> list[Consumer]:
        """Linear operators whose output is the group: it is not the contracted dimension of their weight."""
        rows = {(place.parameter, place.dim) for place in group.places if "produced" in place.role}
        places = sorted(
            {i for name, dim in rows for i in self._of_weight.get(name, ()) if dim != self.consumers[i].dim}
        )
        return [self.consumers[i] for i in places]

    def maps_of(self, groups: Sequence[Group], producers: bool = False) -> list[Consumer]:
        """Linear operators that contract one of the groups, and with `producers` also those that produce one."""
        nodes = {c.node for group in groups for c in self.consumers_of(group)}
        nodes |= {c.node for group in groups for c in self.producers_of(group)} if producers else set()
        return [c for c in self.consumers if c.node in nodes]

    @cached_property
    def _consumers(self) -> Mapping[Prime, list[Consumer]]:
        return _by_prime(self.consumers)

    @cached_property
    def _of_weight(self) -> Mapping[str, list[int]]:
        """Positions of the consumers of every weight."""
        places: dict[str, list[int]] = {}
        for i, consumer in enumerate(self.consumers):
            places.setdefault(consumer.weight, []).append(i)
        return places

    @cached_property
    def _members(self) -> Mapping[Prime, list[Consumer]]:
        return _by_prime(self.members)

    def to_networkx(self) -> "nx.MultiDiGraph[str]":
        """Graph with groups and their tensors as nodes, and every place of a group as an edge.

        Attributes of every node: ``kind`` ("group", "parameter" or "buffer"), ``freedom`` (a value of
        `Freedom`). Of groups: ``label`` (the kind of its indices), ``type`` (its name without layer numbers), ``layer``
        (those numbers), ``size``, ``least`` (the minimum number of retained indices), ``exact``, ``rescaled``,
        ``linked`` (the outer group that may select its indices, or empty), ``places`` (the number of its dimensions),
        and ``parameters``, ``macs`` and ``kv_cache_bytes`` per index. Of tensors: ``shape``
        (as in "576x1536"), ``elements``.

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
        """Numbers of similar groups; a group without similar ones keeps its full name."""
        groups_by_key: dict[Alike, list[Group]] = {}
        for g in self.groups:
            key = Alike(g.label, g.kind, g.size, g.freedom, g.linked is not None, g.cost.parameters)
            groups_by_key.setdefault(key, []).append(g)
        return {
            key._replace(name=groups[0].name) if len(groups) == 1 else key: len(groups)
            for key, groups in groups_by_key.items()
        }

    def _repr_html_(self) -> str:
        return html.part("dependencies.html", shares=self.freedom, dependencies=self)

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


def _by_prime(consumers: Sequence[Consumer]) -> Mapping[Prime, list[Consumer]]:
    """Linear operators by the primes that they contract."""
    by_prime: dict[Prime, list[Consumer]] = {}
    for consumer in consumers:
        for p in dict.fromkeys(primes(consumer.axis)):
            by_prime.setdefault(p, []).append(consumer)
    return by_prime
