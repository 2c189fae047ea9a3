"""Rescaling of means over a cut axis: their factor is propagated to a parameter that absorbs it.

A mean over k of d indices is d/k times the mean with zeros at the removed indices. In an RMS norm,
``x / sqrt(mean(x**2) + eps) * w``, this factor passes through the square root to ``w``, and ``eps`` is multiplied by
it: with ``w * sqrt(d/k)`` and ``eps * d/k`` the narrow norm gives the numbers of the masked one. Where no parameter can
absorb a factor, it is divided out in the graph.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isclose

import torch
import torch.utils._pytree as pytree
from torch import fx

from graphprune.axes.rule import Cut, Rule
from graphprune.ir.program import Program
from graphprune.passes.operators import RULES

aten = torch.ops.aten


@dataclass
class Rescaling:
    """One pass over a rewritten graph; `old` maps its nodes to those of `program`."""

    program: Program
    cut: Cut
    old: Mapping[fx.Node, fx.Node]
    factors: dict[fx.Node, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def run(self, graph: fx.Graph) -> "Rescaling":
        """Propagate every factor; `weights` then holds the factors by which parameters are to be multiplied."""
        users = Counter(self._name(n) for node in graph.nodes for n in node.all_input_nodes if n.op == "get_attr")
        self.exclusive = {name for name, count in users.items() if count == 1 and name in self.program.parameters}
        for node in list(graph.nodes):
            if node.op in ("call_function", "output"):
                self._visit(node)
        return self

    def _visit(self, node: fx.Node) -> None:
        rule = RULES.get(node.target) if node.op == "call_function" else None
        gain = rule.gain(self.cut, self.old[node]) if rule else 1.0
        carried = [n for n in node.all_input_nodes if n in self.factors]
        if not carried and gain == 1.0:
            return
        if rule is not None:
            self._divide_added(rule, node)
            self._absorb(rule, node, gain)
        factor = self._scale(rule, node)
        if factor is None:
            for value in carried:
                self._divide(node, value)
            factor = 1.0
        self._note(node, factor * gain)

    def _divide_added(self, rule: Rule, node: fx.Node) -> None:
        """Divide the factors out of what a linear operator adds or uses otherwise than as a factor."""
        linear = [node.args[i] for i in rule.linear_in if i < len(node.args)]
        for value in [n for n in node.all_input_nodes if linear and n in self.factors and n not in linear]:
            self._divide(node, value)

    def _scale(self, rule: Rule | None, node: fx.Node) -> float | None:
        """The factor of a node without its own gain; an added number is multiplied by it, too. None if undefined."""
        if rule is None or not _is_real(node.meta["val"]):
            return None
        if (factor := rule.scale(node, self._factor)) is not None:
            return factor
        if node.target not in (aten.add.Tensor, aten.add.Scalar) or not isinstance(node.args[1], int | float):
            return None
        x, number = node.args[:2]
        assert isinstance(number, int | float)
        factor = self._factor(x)
        node.args = (x, number * factor, *node.args[2:])
        return factor

    def _absorb(self, rule: Rule, node: fx.Node, gain: float) -> None:
        """Let a parameter that has no other use, and in which the result is linear, absorb the whole factor."""
        operands = [node.args[i] for i in rule.linear_in if i < len(node.args)]
        parameters = [value for value in operands if isinstance(value, fx.Node) and value.op == "get_attr"]
        absorbing = [value for value in parameters if self._name(value) in self.exclusive]
        for value in operands:
            gain *= self._factor(value)
        if absorbing and not isclose(gain, 1.0):
            self.weights[self._name(absorbing[0])] = self.factors[absorbing[0]] = 1 / gain

    def _divide(self, node: fx.Node, value: fx.Node) -> None:
        """Divide the factor out of an input of a node that cannot pass it on."""
        with node.graph.inserting_before(node):
            rescaled = node.graph.call_function(aten.mul.Tensor, (value, 1 / self.factors[value]))
        rescaled.meta = dict(value.meta)
        node.replace_input_with(value, rescaled)

    def _note(self, node: fx.Node, factor: float) -> None:
        if not isclose(factor, 1.0):
            self.factors[node] = factor

    def _factor(self, value: object) -> float:
        return self.factors.get(value, 1.0) if isinstance(value, fx.Node) else 1.0

    def _name(self, node: fx.Node) -> str:
        return self.program.name(str(node.target))


def _is_real(val: object) -> bool:
    """Whether a value is not rounded to integers, so that it can carry a factor."""
    return all(leaf.is_floating_point() or leaf.is_complex() for leaf in pytree.tree_leaves(val))
