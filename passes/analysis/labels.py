"""Labels of groups: the usual name of an index of an axis, such as neuron or KV head, from the use of the axis.

Names of modules and classes are not used. Attention is two products of activations with a normalization between them; a
residual stream is an activation to which outputs of linear layers are added; neurons are outputs of an activation
function between two linear layers.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import fx

from graphprune.axes.algebra import Axis, Prime, Product, primes, resolve
from graphprune.axes.rule_helpers import tensor_inputs
from graphprune.passes.analysis.axis_flow import AxisFlow
from graphprune.passes.operators import RULES
from graphprune.passes.operators.elementwise import Elementwise, compute

UNKNOWN = "width"

T = TypeVar("T")

aten = torch.ops.aten
ADDITIONS = {aten.add.Tensor, aten.add_.Tensor}
TRIALS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # evenly spaced numbers, at which an affine function has no second differences

Places = Mapping[Prime, list[tuple[str, int]]]


@dataclass(frozen=True)
class _Layer:
    """A linear layer in the graph: the parameter `weight` contracts `axis` of the value `x`."""

    node: fx.Node
    x: fx.Node
    weight: str
    axis: frozenset[Prime]


@dataclass(frozen=True)
class _Attention:
    """Axes of products of activations whose scores are normalized."""

    heads: frozenset[Prime]
    queried: frozenset[Prime]  # in queries but not in keys
    contracted: frozenset[Prime]
    values: frozenset[Prime]


@dataclass(frozen=True)
class Labels:
    """Labels of all free axes."""

    flow: AxisFlow
    places: Places
    links: Mapping[Prime, Prime]
    _activations: dict[fx.Node, bool] = field(default_factory=dict)
    _primes_of: dict[fx.Node, frozenset[Prime]] = field(default_factory=dict)
    _inputs_of: dict[fx.Node, frozenset[fx.Node]] = field(default_factory=dict)

    def of(self, p: Prime) -> str:
        """The label of an axis; a neutral one if its use is unknown."""
        return self._in_experts(p) or self._in_attention(p) or self._in_layers(p) or UNKNOWN

    def _in_experts(self, p: Prime) -> str:
        """The label of experts: a stack of matrices, selected for every row by indices that the model computes."""
        if p not in self._pointed:
            return ""
        stacks = [self.flow.tensors[name][dim] for name, dim in self.places[p] if self._is_stack(name, dim)]
        free = [q for axis in stacks[:1] for q in primes(axis) if not q.pins]
        grouped = "expert groups" if free[:1] == [p] else "experts per group"
        return grouped if len(free) > 1 else "experts" if free else ""

    def _is_stack(self, name: str, dim: int) -> bool:
        """Whether the dimension selects one of several matrices."""
        return dim == 0 and len(self.flow.tensors[name]) > 2 and name not in self._convolved

    def _in_attention(self, p: Prime) -> str:
        attention = self._attention
        if p in attention.contracted:
            return "rotary pairs" if p in self._paired else "query/key dimensions"
        if p in attention.heads | attention.queried:
            if self._is_grouped(p):
                return "query heads per KV head"
            return "KV heads" if any(self.links.get(q) is p and self._is_grouped(q) for q in self.links) else "heads"
        return "value dimensions" if p in attention.values else ""

    def _is_grouped(self, p: Prime) -> bool:
        """Whether the axis divides an axis of heads that occurs in more parameters, those of keys and values."""
        owner, heads = self.links.get(p), self._attention.heads | self._attention.queried
        return p in heads and owner in heads and len(self.places[owner]) > len(self.places[p])

    def _in_layers(self, p: Prime) -> str:
        if any(name in self._recurrent for name, _ in self.places[p]):
            return "recurrent units"
        consumers, producers = self._consumers.get(p, []), self._producers.get(p, [])
        weights = {layer.weight for layer in (*consumers, *producers)}
        filters = weights & self._convolved
        if filters and len(filters) >= len(weights - filters):
            return "channels"
        if p in self._residual and len({layer.x for layer in consumers}) > 1:
            return "hidden size"
        if not consumers or not producers:
            return "embedding size" if consumers and self._is_looked_up(p) else ""
        activated = any(map(self._is_activation, self._between(p, consumers, producers)))
        return "neurons" if activated else "latent dimensions"

    def _is_looked_up(self, p: Prime) -> bool:
        return any("produced" in self.flow.roles[place] for place in self.places[p])

    @cached_property
    def _layers(self) -> list[_Layer]:
        layers = []
        for axis, operands, node in self.flow.contractions:
            for x, weight in (operands, operands[::-1]) if len(operands) == 2 else ():
                source = self.flow.parameter_of(weight)
                if source and isinstance(x, fx.Node) and not self.flow.parameter_of(x):
                    layers.append(_Layer(node, x, source[0], frozenset(primes(axis))))
        return layers

    @cached_property
    def _consumers(self) -> Mapping[Prime, list[_Layer]]:
        """The linear layers that contract each axis."""
        return _by_prime((layer, layer.axis) for layer in self._layers)

    @cached_property
    def _producers(self) -> Mapping[Prime, list[_Layer]]:
        """The linear layers whose output has each axis, without those that contract it."""
        return _by_prime((layer, self._primes(layer.node) - layer.axis) for layer in self._layers)

    @cached_property
    def _carriers(self) -> Mapping[Prime, frozenset[fx.Node]]:
        """The values that have each axis."""
        pairs = _by_prime((node, self._primes(node)) for node in self.flow.values)
        return {p: frozenset(nodes) for p, nodes in pairs.items()}

    @cached_property
    def _contracting(self) -> Mapping[fx.Node, frozenset[Prime]]:
        return {layer.node: layer.axis for layer in self._layers}

    @cached_property
    def _convolved(self) -> frozenset[str]:
        """Weights of convolutions."""
        return frozenset(layer.weight for layer in self._layers if "conv" in str(layer.node.target))

    @cached_property
    def _recurrent(self) -> frozenset[str]:
        """Weights of recurrent layers."""
        nodes = [n for n in self.flow.values if any(word in str(n.target) for word in ("lstm", "gru", "rnn"))]
        return frozenset(self.flow.program.names(value for node in nodes for value in node.all_input_nodes))

    @cached_property
    def _pointed(self) -> frozenset[Prime]:
        """Axes into which indices computed by the model point."""
        return frozenset(p for axis in self.flow.pointers.table.values() for p in primes(axis))

    @cached_property
    def _normalized(self) -> frozenset[Prime]:
        return frozenset(p for axis, _ in self.flow.inexact for p in primes(axis))

    @cached_property
    def _products(self) -> list[tuple[frozenset[Prime], frozenset[Prime], Axis]]:
        """Products of two activations: the axes of both, and the one that is contracted."""
        products = []
        for axis, operands, _ in self.flow.contractions:
            if len(operands) == 2 and not any(self.flow.parameter_of(value) for value in operands):
                x, y = (_all(self.flow.dims(value)) for value in operands)
                products.append((x, y, axis))
        return products

    @cached_property
    def _attention(self) -> _Attention:
        heads, queried, contracted, values = set[Prime](), set[Prime](), set[Prime](), set[Prime]()
        for x, y, axis in self._products:
            inner = frozenset(primes(axis))
            if inner and inner <= self._normalized:
                heads |= x & y - inner
                values |= y - x
            elif self._normalized & (x | y) - inner:
                heads |= x & y - inner
                queried |= x - y
                contracted |= inner
        cached = [self.flow.dims(value) for value in self.flow.keys_and_values]
        for key, value in zip(cached[::2], cached[1::2], strict=True):  # fused: their product is not among those above
            values |= _all(value[-1:]) - _all(key)
        return _Attention(*map(frozenset, (heads, queried, contracted, values)))

    @cached_property
    def _paired(self) -> frozenset[Prime]:
        """Axes of which an index is two elements of a contracted axis: in two halves, or adjacent."""
        paired = set[Prime]()
        for _, _, axis in self._products:
            elements = list(primes(axis))
            paired |= {p for p in elements if elements.count(p) == 2}
            paired |= {p for p in elements if any(_times_two(part, p) for part in _parts_of(axis))}
        return frozenset(paired)

    @cached_property
    def _residual(self) -> frozenset[Prime]:
        """Axes along which the output of a linear layer is added to an activation."""
        residual = set[Prime]()
        for node in self.flow.values:
            values = [value for value in node.args[:2] if isinstance(value, fx.Node)]
            if node.target in ADDITIONS and len(values) == 2 and not any(map(self.flow.parameter_of, values)):
                shared = self._primes(values[0]) & self._primes(values[1])
                residual |= {p for p in shared - residual if any(self._is_output(value, p) for value in values)}
        return frozenset(residual)

    def _is_output(self, value: fx.Node, p: Prime) -> bool:
        """Whether a value is the output of a linear layer over the axis, apart from norms, scales and views."""
        while p in self._contracting.get(value, {p}):
            inputs = [n for n in value.all_input_nodes if n.op != "get_attr" and p in self._primes(n)]
            if len(inputs) != 1 or self._is_activation(value):
                return False
            value = inputs[0]
        return True

    def _between(self, p: Prime, consumers: list[_Layer], producers: list[_Layer]) -> Iterator[fx.Node]:
        """Operators between the layers that produce an axis and those that consume it."""
        ends = {layer.node for layer in producers}
        queue = [layer.x for layer in consumers]
        visited, carriers = set(queue), self._carriers.get(p, frozenset())
        while queue:
            node = queue.pop()
            if node not in ends:
                yield node
                unseen = (self._inputs(node) & carriers) - visited
                visited |= unseen
                queue += unseen

    def _primes(self, node: fx.Node) -> frozenset[Prime]:
        if node not in self._primes_of:
            self._primes_of[node] = _all(self.flow.flat(node))
        return self._primes_of[node]

    def _inputs(self, node: fx.Node) -> frozenset[fx.Node]:
        if node not in self._inputs_of:
            self._inputs_of[node] = frozenset(node.all_input_nodes)
        return self._inputs_of[node]

    def _is_activation(self, node: fx.Node) -> bool:
        """Whether the node is an activation function: element-wise, of one tensor, and not affine."""
        if node not in self._activations:
            self._activations[node] = node.target is aten.glu.default or _is_nonlinear_elementwise(node)
        return self._activations[node]


def _is_nonlinear_elementwise(node: fx.Node) -> bool:
    if not isinstance(RULES.get(node.target), Elementwise) or len(list(tensor_inputs(node))) != 1:
        return False
    return bool(compute(node, [TRIALS]).to(torch.complex128).diff(n=2).abs().max() > 1e-4)


def _by_prime(pairs: Iterable[tuple[T, Iterable[Prime]]]) -> dict[Prime, list[T]]:
    """Items by the primes that each has."""
    by_prime: dict[Prime, list[T]] = {}
    for item, inside in pairs:
        for p in inside:
            by_prime.setdefault(p, []).append(item)
    return by_prime


def _all(axes: Iterable[Axis]) -> frozenset[Prime]:
    return frozenset(p for axis in axes for p in primes(axis))


def _parts_of(axis: Axis) -> Iterator[Axis]:
    """An axis and all axes of which it is composed."""
    axis = resolve(axis)
    yield axis
    for part in () if isinstance(axis, Prime) else axis.parts:
        yield from _parts_of(part)


def _times_two(axis: Axis, p: Prime) -> bool:
    """Whether the axis is `p` with two elements inside each index."""
    return isinstance(axis, Product) and axis.parts[:1] == (p,) and axis.size == 2 * p.size
