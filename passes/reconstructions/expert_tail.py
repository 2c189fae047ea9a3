"""The part of a mixture of experts after their last linear layer: router weights, the order of tokens, and the sum."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.contributions import Contribution
from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.errors import CalibrationError
from graphprune.execution.segments import activation_nodes, evaluate_node
from graphprune.ir.program import Program

NEGLIGIBLE = 1e-3  # deviation from a linear function, relative to its values


@dataclass(frozen=True)
class Tail:
    """The `nodes` from the outputs of a stack of linear layers, `members`, to their weighted sum `total`."""

    members: tuple[Consumer, ...]
    nodes: tuple[fx.Node, ...]
    total: str

    @classmethod
    def of(cls, part: Contribution, program: Program, dependencies: Dependencies) -> "Tail | None":
        """The tail of a contribution; None if no linear layer of a stack precedes it, or several values follow."""
        nodes = {node.name: node for node in program.graph.nodes}
        order = {name: i for i, name in enumerate(nodes)}
        stacks = [c for c in dependencies.members if c.member is not None and c.member.offsets == part.offsets]
        before = [c for c in stacks if order[c.node] <= order[part.node]]
        if not before:
            return None
        last = max(before, key=lambda c: order[c.node])
        start, total = nodes[last.node], _total(nodes[part.node], program)
        if total is None:
            return None
        inside = _closure(start, lambda node: node.users) & _closure(total, lambda node: node.all_input_nodes)
        path = tuple(node for node in program.graph.nodes if node in inside and node is not start)
        return cls(tuple(c for c in before if c.node == last.node), path, total.name)

    @property
    def start(self) -> str:
        """The node of the linear layers."""
        return self.members[0].node

    @property
    def watch(self) -> set[str]:
        """The values that a run of the tail and a fit need."""
        first = self.members[0]
        offsets = first.member.offsets if first.member is not None else None
        inputs = {n.name for node in self.nodes for n in node.all_input_nodes if n.op != "get_attr"}
        inside = {node.name for node in self.nodes}
        return {self.start, first.x, *filter(None, [offsets]), *(inputs - inside), self.total}

    def run(self, outputs: Tensor, seen: Mapping[str, Any], weights: Mapping[str, Tensor], program: Program) -> Tensor:
        """The weighted sum for other outputs of the linear layers."""
        values = {**seen, self.start: outputs}
        for node in self.nodes:
            values[node.name] = evaluate_node(node, values, lambda n: weights[program.name(str(n.target))])
        total: Tensor = values[self.total]
        return total

    def pulled(
        self, error: Tensor, seen: Mapping[str, Any], weights: Mapping[str, Tensor], program: Program
    ) -> tuple[Tensor, Tensor]:
        """The error of the sum, carried back to every row, shape (rows, features), and the weight of each row."""
        with torch.enable_grad():
            outputs = seen[self.start].detach().requires_grad_()
            total = self.run(outputs, seen, weights, program)
            (rows,) = torch.autograd.grad(total, outputs, error.to(total), retain_graph=True)
            (ones,) = torch.autograd.grad(total, outputs, torch.ones_like(total))
        if bool((ones - ones[:, :1]).abs().max() > NEGLIGIBLE * ones.abs().max()):
            raise self._nonlinear()
        return rows, ones[:, 0]

    def require_linear(self, seen: Mapping[str, Any], weights: Mapping[str, Tensor], program: Program) -> None:
        """Refuse a sum that is no linear function of the outputs, and rows that are not added up.

        Raises:
            CalibrationError: if it is none.
        """
        zero, once, twice = (self.run(seen[self.start] * f, seen, weights, program) for f in (0.0, 1.0, 2.0))
        bent = bool((twice - 2 * once + zero).abs().max() > NEGLIGIBLE * once.abs().max())
        if bent or once.numel() >= seen[self.start].numel():  # rows that are not added up have another order
            raise self._nonlinear()

    def _nonlinear(self) -> CalibrationError:
        return CalibrationError(f"the outputs of {self.start} are not added up with one weight for each row")


def _total(node: fx.Node, program: Program) -> fx.Node | None:
    """The last value that a value alone determines, apart from indices and constants; None if several leave it."""
    active, inside = activation_nodes(program), dict.fromkeys([node])
    for user in program.graph.nodes:
        floats = [n for n in user.all_input_nodes if n in active and _is_float(n)]
        if user in active and _is_float(user) and floats and all(n in inside for n in floats):
            inside[user] = None
    *others, last = inside
    return last if all(user in inside for n in others for user in n.users) else None


def _is_float(node: fx.Node) -> bool:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)


def _closure(node: fx.Node, neighbors: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """A node and all that its neighbors lead to."""
    known, stack = set[fx.Node](), [node]
    while stack:
        current = stack.pop()
        if current not in known:
            known.add(current)
            stack += neighbors(current)
    return known
