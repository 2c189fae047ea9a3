"""What a value is where an axis is masked: what is not zero there, and is summed, would not be exact."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import fx

from graphprune.axes.algebra import Axis, Prime, Product, primes, resolve
from graphprune.axes.rule import MaskedArguments, Rule, Zeros
from graphprune.passes.analysis.axis_flow import AxisFlow
from graphprune.passes.analysis.index_values import parts
from graphprune.registry import Registry


def inexact(flow: AxisFlow, rules: Registry[Any, Rule]) -> Iterator[tuple[Prime, str]]:
    """Primes whose masked indices leave a trace, and where: they are no numbers, or they are summed and not zero.

    Masked parameters are zero at the masked indices; from there numbers are followed through the graph.
    """
    zeros = _Follower(flow, rules)
    lost = zeros.run()
    while zeros.overwrite():  # the next call reads what this one wrote
        lost = zeros.run()
    for node, p in lost:
        yield p, flow.say("it is a divisor here", node)
    for axis, operands, place in flow.contractions:
        nodes = [value for value in operands if isinstance(value, fx.Node)]
        for p in set(primes(axis)):
            if not p.pins and all(zeros.is_loud(node, p) for node in nodes):
                yield p, flow.say("values that are not zero are summed over it", place)


@dataclass
class _Follower:
    """For every value its free primes, and the number that it is where one of them is masked, as far as known."""

    flow: AxisFlow
    rules: Registry[Any, Rule]
    primes: dict[fx.Node, frozenset[Prime]] = field(default_factory=dict)
    known: dict[fx.Node, dict[Prime, float]] = field(default_factory=dict)
    unknown: set[tuple[str, Prime]] = field(default_factory=set)

    def run(self) -> list[tuple[fx.Node, Prime]]:
        """Visit every node; return the primes of which no number is left, and where."""
        return [(node, p) for node in self.flow.program.graph.nodes for p in self.visit(node)]

    def overwrite(self) -> bool:
        """Forget the numbers of tensors into which others were written; is one forgotten that was known before?"""
        before = len(self.unknown)
        for node in self.flow.program.graph.nodes:
            if node.target is torch.ops.aten.copy_.default:
                target, source = node.args
                self.unknown |= {(str(target.target), p) for p in self.primes[node] if self.is_loud(source, p)}
        return len(self.unknown) > before

    def visit(self, node: fx.Node) -> list[Prime]:
        """Note what the value is; return the primes of which no number is left."""
        self.primes[node] = frozenset(p for axis in self.flow.flat(node) for p in primes(axis) if not p.pins)
        numbers = {p: self._number(node, p) for p in self.primes[node]}
        self.known[node] = {p: x for p, x in numbers.items() if x is not None and isfinite(x)}
        return [p for p, x in numbers.items() if x is not None and not isfinite(x)]

    def is_loud(self, node: fx.Node, p: Prime) -> bool:
        """May the value be another number than zero where the prime is masked?"""
        return p in self.primes[node] and self.known[node].get(p) != 0

    def _number(self, node: fx.Node, p: Prime) -> float | None:
        if node.op in ("get_attr", "placeholder"):
            return None if (str(node.target), p) in self.unknown else 0.0
        rule = self.rules.get(node.target)
        if rule is None or self.flow.pointers.of(node) is not None:
            return None  # of an index zero is a number like any other
        holders = [n for n in parts(node, rule) if p in self.primes[n]]
        dims = tuple(i for i, axis in enumerate(self.flow.dims(node)) if isinstance(axis, tuple) or p in primes(axis))
        known = {n: self.known[n][p] for n in holders if p in self.known[n]}
        repeated = frozenset(n for n in holders if self._is_repeated(n, p))
        inputs = MaskedArguments(known, frozenset(holders), dims, repeated)
        number = rule.masked_value(node, inputs)
        spoilt = number is not None and isfinite(number) and self._spreads(node, rule, p, inputs)
        return None if spoilt else number

    def _is_repeated(self, node: fx.Node, p: Prime) -> bool:
        """Does the value hold the same numbers at every index of the prime?"""
        rule = self.rules.get(node.target)
        return rule is not None and rule.repeats and not any(p in self.primes[n] for n in node.all_input_nodes)

    def _spreads(self, node: fx.Node, rule: Rule, p: Prime, inputs: MaskedArguments) -> bool:
        """Does the prime stand in more dimensions than before, so that one of them may be masked and the other not?"""
        count = _count(self.flow, node, p)
        if count < 2 or (rule.zeros is Zeros.PRODUCT and all(inputs.number_of(n) == 0 for n in inputs.carriers)):
            return False
        return rule.zeros is Zeros.PRODUCT or any(_count(self.flow, n, p) < count for n in inputs.carriers)


def _count(flow: AxisFlow, node: fx.Node, p: Prime) -> int:
    """How often a prime stands side by side with itself in a value."""
    return max((sum(_times(axis, p) for axis in output) for output in flow.outputs(node)), default=0)


def _times(axis: Axis, p: Prime) -> int:
    axis = resolve(axis)
    if isinstance(axis, Prime):
        return int(axis is p)
    times = [_times(part, p) for part in axis.parts]
    return sum(times) if isinstance(axis, Product) else max(times, default=0)
