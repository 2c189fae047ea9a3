"""Where a masked index stops being zero: what is summed there would not be exact."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx

from graphprune.axes import Prime, primes
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
        return new | {p for p in own if all(p in found[n] or p not in _primes(flow, n) for n in inputs)}
    spread = own.intersection(set().union(*(found[n] for n in inputs)))
    return new | spread | {p for p in own if _lacks(flow, node, rule, p)}


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
