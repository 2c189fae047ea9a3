"""Exactness of axes: values at masked indices must be zero wherever they are summed."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import fx

from graphprune.axes.algebra import Axis, Prime, Product, primes
from graphprune.axes.rule import Dims, MaskedArguments, Rule, Zeros
from graphprune.passes.analysis.axis_flow import AxisFlow
from graphprune.passes.analysis.index_values import contributing_inputs
from graphprune.registry import Registry


def inexact_primes(flow: AxisFlow, rules: Registry[Any, Rule]) -> Iterator[tuple[Prime, str]]:
    """Primes whose masked indices affect the outputs, with the reason: NaN, or a nonzero value that is summed.

    Parameters are zero at masked indices; from these the values at masked indices are computed through the graph.
    """
    masked = _MaskedValues(flow, rules)
    undefined = masked.run()
    while masked.invalidate_overwritten():  # the next call reads the buffers that this one wrote
        undefined = masked.run()
    for node, p in undefined:
        yield p, flow.reason_at("it is a divisor here", node)
    for axis, operands, place in flow.contractions:
        nodes = [value for value in operands if isinstance(value, fx.Node)]
        for p in set(primes(axis)):
            if not p.pins and all(masked.may_be_nonzero(node, p) for node in nodes):
                yield p, flow.reason_at("values that are not zero are summed over it", place)


@dataclass
class _MaskedValues:
    """Free primes of every value, and the number at their masked indices where it is known."""

    flow: AxisFlow
    rules: Registry[Any, Rule]
    primes: dict[fx.Node, frozenset[Prime]] = field(default_factory=dict)
    known: dict[fx.Node, dict[Prime, float]] = field(default_factory=dict)
    dims: dict[fx.Node, dict[Prime, tuple[int, ...]]] = field(default_factory=dict)
    times: dict[fx.Node, Counter[Prime]] = field(default_factory=dict)
    unknown: set[tuple[str, Prime]] = field(default_factory=set)

    def run(self) -> list[tuple[fx.Node, Prime]]:
        """Visit every node; return the primes with values at masked indices that are not finite, and the nodes."""
        return [(node, p) for node in self.flow.program.graph.nodes for p in self.visit(node)]

    def invalidate_overwritten(self) -> bool:
        """Mark the numbers of overwritten tensors as unknown; return whether this is new for one of them."""
        before = len(self.unknown)
        for node in self.flow.program.graph.nodes:
            if node.target is torch.ops.aten.copy_.default:
                target, source = node.args
                self.unknown |= {(str(target.target), p) for p in self.primes[node] if self.may_be_nonzero(source, p)}
        return len(self.unknown) > before

    def visit(self, node: fx.Node) -> list[Prime]:
        """Note the numbers of a value; return the primes with numbers that are not finite."""
        self.primes[node] = frozenset(p for axis in self.flow.flat(node) for p in primes(axis) if not p.pins)
        self.dims[node] = _dims(self.flow.dims(node), self.primes[node])
        self.times[node] = _times(self.flow.outputs(node), self.primes[node])
        numbers = self._numbers(node)
        self.known[node] = {p: x for p, x in numbers.items() if x is not None and isfinite(x)}
        return [p for p, x in numbers.items() if x is not None and not isfinite(x)]

    def may_be_nonzero(self, node: fx.Node, p: Prime) -> bool:
        """Whether the value may differ from zero at the masked indices of a prime.

        A value without the prime is stretched along it, and is the same at all of its indices.
        """
        return self.known[node].get(p) != 0

    def _numbers(self, node: fx.Node) -> dict[Prime, float | None]:
        """The number of a value at the masked indices of each of its primes; None where it is unknown."""
        if node.op in ("get_attr", "placeholder"):
            return {p: None if (str(node.target), p) in self.unknown else 0.0 for p in self.primes[node]}
        rule = self.rules.get(node.target)
        if rule is None or self.flow.pointers.of(node) is not None:
            return dict.fromkeys(self.primes[node])  # an index of 0 is not neutral
        holders: dict[Prime, list[fx.Node]] = {p: [] for p in self.primes[node]}
        for value in contributing_inputs(node, rule):
            for p in self.primes[value] & holders.keys():
                holders[p].append(value)
        return {p: self._number(node, rule, p, holders[p]) for p in self.primes[node]}

    def _number(self, node: fx.Node, rule: Rule, p: Prime, holders: Sequence[fx.Node]) -> float | None:
        known = {n: self.known[n][p] for n in holders if p in self.known[n]}
        repeated = frozenset(n for n in holders if self._is_repeated(n, p))
        places = {n: self.dims[n][p] for n in holders}
        inputs = MaskedArguments(known, frozenset(holders), self.dims[node][p], repeated, places)
        number = rule.masked_value(node, inputs)
        ambiguous = number is not None and isfinite(number) and self._spreads(node, rule, p, inputs)
        return None if ambiguous else number

    def _is_repeated(self, node: fx.Node, p: Prime) -> bool:
        """Whether the value has the same numbers at every index of the prime."""
        rule = self.rules.get(node.target)
        return rule is not None and rule.repeats and not any(p in self.primes[n] for n in node.all_input_nodes)

    def _spreads(self, node: fx.Node, rule: Rule, p: Prime, inputs: MaskedArguments) -> bool:
        """Whether the prime occurs in more dimensions of the output, of which one may be masked and another not."""
        count = self.times[node][p]
        if count < 2 or (rule.zeros is Zeros.PRODUCT and all(inputs.number_of(n) == 0 for n in inputs.carriers)):
            return False
        return rule.zeros is Zeros.PRODUCT or any(self.times[n][p] < count for n in inputs.carriers)


def _dims(axes: Iterable[Axis | Dims], free: Collection[Prime]) -> dict[Prime, tuple[int, ...]]:
    """Dimensions in which each free prime occurs; outputs, for a value with several."""
    dims: dict[Prime, tuple[int, ...]] = dict.fromkeys(free, ())
    for i, axis in enumerate(axes):
        for p in free if isinstance(axis, tuple) else dims.keys() & set(primes(axis)):
            dims[p] += (i,)
    return dims


def _times(outputs: Iterable[Dims], free: Collection[Prime]) -> Counter[Prime]:
    """Number of dimensions of a value in which each free prime occurs at once."""
    times = _most(_total(map(_times_inside, dims)) for dims in outputs)
    return Counter({p: n for p, n in times.items() if p in free})


def _times_inside(axis: Axis) -> Counter[Prime]:
    if isinstance(axis, Prime):
        return Counter((axis,))
    parts = map(_times_inside, axis.parts)
    return _total(parts) if isinstance(axis, Product) else _most(parts)


def _total(parts: Iterable[Counter[Prime]]) -> Counter[Prime]:
    total = Counter[Prime]()
    for part in parts:
        total.update(part)
    return total


def _most(parts: Iterable[Counter[Prime]]) -> Counter[Prime]:
    most = Counter[Prime]()
    for p, n in (pair for part in parts for pair in part.items()):
        most[p] = max(most[p], n)
    return most
