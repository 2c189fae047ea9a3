"""Exactness of axes: values at masked indices must be zero wherever they are summed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import fx

from graphprune.axes.algebra import Axis, Prime, Product, primes, resolve
from graphprune.axes.rule import MaskedArguments, Rule, Zeros
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
        numbers = {p: self._number(node, p) for p in self.primes[node]}
        self.known[node] = {p: x for p, x in numbers.items() if x is not None and isfinite(x)}
        return [p for p, x in numbers.items() if x is not None and not isfinite(x)]

    def may_be_nonzero(self, node: fx.Node, p: Prime) -> bool:
        """Whether the value may differ from zero at the masked indices of a prime.

        A value without the prime is stretched along it, and is the same at all of its indices.
        """
        return self.known[node].get(p) != 0

    def _number(self, node: fx.Node, p: Prime) -> float | None:
        if node.op in ("get_attr", "placeholder"):
            return None if (str(node.target), p) in self.unknown else 0.0
        rule = self.rules.get(node.target)
        if rule is None or self.flow.pointers.of(node) is not None:
            return None  # an index of 0 is not neutral
        holders = [n for n in contributing_inputs(node, rule) if p in self.primes[n]]
        known = {n: self.known[n][p] for n in holders if p in self.known[n]}
        repeated = frozenset(n for n in holders if self._is_repeated(n, p))
        places = {n: self._dims_of(n, p) for n in holders}
        inputs = MaskedArguments(known, frozenset(holders), self._dims_of(node, p), repeated, places)
        number = rule.masked_value(node, inputs)
        ambiguous = number is not None and isfinite(number) and self._spreads(node, rule, p, inputs)
        return None if ambiguous else number

    def _dims_of(self, node: fx.Node, p: Prime) -> tuple[int, ...]:
        """Dimensions in which a prime occurs; outputs, for a value with several."""
        return tuple(i for i, axis in enumerate(self.flow.dims(node)) if isinstance(axis, tuple) or p in primes(axis))

    def _is_repeated(self, node: fx.Node, p: Prime) -> bool:
        """Whether the value has the same numbers at every index of the prime."""
        rule = self.rules.get(node.target)
        return rule is not None and rule.repeats and not any(p in self.primes[n] for n in node.all_input_nodes)

    def _spreads(self, node: fx.Node, rule: Rule, p: Prime, inputs: MaskedArguments) -> bool:
        """Whether the prime occurs in more dimensions of the output, of which one may be masked and another not."""
        count = _count(self.flow, node, p)
        if count < 2 or (rule.zeros is Zeros.PRODUCT and all(inputs.number_of(n) == 0 for n in inputs.carriers)):
            return False
        return rule.zeros is Zeros.PRODUCT or any(_count(self.flow, n, p) < count for n in inputs.carriers)


def _count(flow: AxisFlow, node: fx.Node, p: Prime) -> int:
    """Number of dimensions of a value in which a prime occurs at once."""
    return max((sum(_times(axis, p) for axis in output) for output in flow.outputs(node)), default=0)


def _times(axis: Axis, p: Prime) -> int:
    axis = resolve(axis)
    if isinstance(axis, Prime):
        return int(axis is p)
    times = [_times(part, p) for part in axis.parts]
    return sum(times) if isinstance(axis, Product) else max(times, default=0)
