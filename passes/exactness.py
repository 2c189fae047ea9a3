"""Where a masked index stops being zero: what is summed there would not be exact."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx

from graphprune.axes import Axis, Prime, Product, primes, resolve
from graphprune.contracts import Rule, Zeros
from graphprune.passes.flow import AxisFlow
from graphprune.registry import Registry


def loud(flow: AxisFlow, rules: Registry[Any, Rule]) -> Iterator[tuple[Prime, str]]:
    """Primes that are summed over although no operand is zero where they are masked, and where that happens.

    Masked parameters are zero at the masked indices; from there zeros are followed through the graph.
    """
    found: dict[fx.Node, set[Prime]] = {}
    for node in flow.program.graph.nodes:
        found[node] = _loud(flow, rules, node, found)
    for axis, operands, where in flow.contractions:
        nodes = [value for value in operands if isinstance(value, fx.Node)]
        for p in set(primes(axis)):
            if all(p in found[node] for node in nodes):
                yield p, f"values that are not zero are summed over it, at {where}"


def _loud(flow: AxisFlow, rules: Registry[Any, Rule], node: fx.Node, found: Mapping[fx.Node, set[Prime]]) -> set[Prime]:
    """The primes of a value at whose masked indices it may not be zero."""
    own = _primes(flow, node)
    if node.op in ("get_attr", "placeholder") or not own:
        return set()
    rule = rules.get(node.target)
    inputs = [n for n in node.all_input_nodes if flow.values.get(n) is not None]
    if rule is None or rule.zeros is Zeros.LOST:
        return own
    new = own.difference(*(_primes(flow, n) for n in inputs))  # an axis along which values were repeated
    if rule.zeros is Zeros.PRODUCT:
        all_loud = {p for p in own if all(p in found[n] or p not in _primes(flow, n) for n in inputs)}
        return new | all_loud | _repeated(flow, node, rule, inputs, found)
    spread = own.intersection(set().union(*(found[n] for n in inputs)))
    return new | spread | {p for p in own if _lacks(flow, node, rule, p)} | _repeated(flow, node, rule, inputs, found)


def _repeated(
    flow: AxisFlow, node: fx.Node, rule: Rule, inputs: list[fx.Node], found: Mapping[fx.Node, set[Prime]]
) -> set[Prime]:
    """Primes that stand in several dimensions of a value, which may be zero along one and not along the other."""
    counts = {p: n for p in _primes(flow, node) if (n := _count(flow, node, p)) > 1}
    quiet = {p for p in counts if not any(p in found[n] for n in inputs)}
    if rule.zeros is Zeros.PRODUCT:
        return counts.keys() - quiet
    return {p for p in counts if p not in quiet or any(0 < _count(flow, n, p) < counts[p] for n in inputs)}


def _count(flow: AxisFlow, node: fx.Node, p: Prime) -> int:
    """How often a prime stands side by side with itself in a value."""
    dims: Any = flow.values.get(node) or ()
    outputs = dims if isinstance(dims, list) else [dims]
    return max((sum(_times(axis, p) for axis in output) for output in outputs), default=0)


def _times(axis: Axis, p: Prime) -> int:
    axis = resolve(axis)
    if isinstance(axis, Prime):
        return int(axis is p)
    times = [_times(part, p) for part in axis.parts]
    return sum(times) if isinstance(axis, Product) else max(times, default=0)


def _lacks(flow: AxisFlow, node: fx.Node, rule: Rule, p: Prime) -> bool:
    """Is something added that does not have the axis, a number or a narrower tensor?"""
    added = (node.args[i] for i in rule.summands if i < len(node.args))
    return any(p not in _primes(flow, value) for value in added if value is not None and value != 0)


def _primes(flow: AxisFlow, value: object) -> set[Prime]:
    if not isinstance(value, fx.Node):
        return set()
    dims = flow.values.get(value) or ()
    flat = [axis for item in dims for axis in (item if isinstance(item, tuple) else (item,))]
    return {p for axis in flat for p in primes(axis)}
