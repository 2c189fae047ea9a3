"""Modules and operators of a graph, folded for a page."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from graphprune.axes.algebra import primes
from graphprune.axes.explanations import Reason
from graphprune.axes.groups import Dependencies
from graphprune.ir.printer import type_text
from graphprune.ir.program import Program

MARK = "~"  # prefix of a folded part: some operators of a module, not a module itself
FEW = 4  # up to this many operators that touch no group are shown with the others
MOST = 150  # more operators than this in one module are folded, in parts of `PART`: their layout would not be readable
PART = 50


@dataclass(frozen=True)
class GraphCall:
    """Operator, input or output: its module, the calls and tensors that it reads, its groups, and its code.

    `module` is the path of the innermost module that runs it, `groups` are names, `type` is such as
    ``float32[2, s0, 64]``.
    """

    name: str
    operator: str
    module: str
    inputs: tuple[str, ...]
    tensors: tuple[str, ...]
    groups: tuple[str, ...]
    type: str
    code: Reason


@dataclass(frozen=True)
class Modules:
    """Modules that a program runs, and the operators that each of them runs itself."""

    program: Program
    dependencies: Dependencies

    @cached_property
    def owners(self) -> Mapping[str, str]:
        """Path of the innermost module that runs a node, by the node's name.

        Where it is not recorded, it is the module whose tensor the node reads, or else the parent of the module of the
        last tensor read before: nodes are in the order of execution.
        """
        owners, last = {}, ""
        for node in self.program.graph.nodes:
            read = [str(n.target).rpartition(".")[0] for n in node.all_input_nodes if n.op == "get_attr"]
            recorded = [path for path, _ in _stack(node)]
            last = next(iter(read), last)
            inferred = next(iter(read), last.rpartition(".")[0]) if node.op == "call_function" else ""
            owners[node.name] = recorded[-1] if recorded else inferred
        return owners

    @cached_property
    def classes(self) -> Mapping[str, str]:
        """Class of every module by its path, empty where it is unknown; parents precede their modules."""
        classes = {"": ""}
        for node in self.program.graph.nodes:
            stack = dict(_stack(node))
            classes |= {path: str(cls).rpartition(".")[2] for path, cls in stack.items()}
            classes |= {} if stack else dict.fromkeys(_around(self.owners[node.name]), "")
        return {path: classes[path] for path in sorted(classes, key=lambda path: (path.count("."), bool(path)))}

    def nearest(self, path: str) -> str:
        """Path of the module itself, or of its innermost parent that is run; the whole model has the empty path."""
        return next((path for path in _around(path) if path in self.classes), "")

    @cached_property
    def calls(self) -> tuple[GraphCall, ...]:
        """Operators of the graph, in order; where a module has too many to show, they are folded into parts."""
        calls = [self._call(node) for node in self.program.graph.nodes if _shown(node)]
        known = {call.name for call in calls}
        calls = [replace(call, inputs=tuple(name for name in call.inputs if name in known)) for call in calls]
        return tuple(_in_parts(_fold_quiet(calls)))

    def _call(self, node: fx.Node) -> GraphCall:
        reads = list(node.all_input_nodes)
        return GraphCall(
            name=node.name,
            operator=_operator(node),
            module=self.owners[node.name],
            inputs=tuple(n.name for n in reads if n.op != "get_attr"),
            tensors=tuple(dict.fromkeys(self.program.name(str(n.target)) for n in reads if n.op == "get_attr")),
            groups=self._groups(node),
            type=type_text(node.meta.get("val")),
            code=Reason.at("", node),
        )

    def _groups(self, node: fx.Node) -> tuple[str, ...]:
        parts = (p for axis in self.dependencies.axes_of(node.name) for p in primes(axis))
        groups = map(self.dependencies.by_prime.get, parts)
        return tuple(dict.fromkeys(group.name for group in groups if group))


def _stack(node: fx.Node) -> Iterator[tuple[str, Any]]:
    """Paths and classes of the modules that run a node, outermost first."""
    for path, cls in (node.meta.get("nn_module_stack") or {}).values():
        if "_empty_nn_module_stack" not in path:
            yield path.partition("@")[0], cls  # the path of a module that is called again has a suffix


def _around(path: str) -> list[str]:
    """Path and its parents, innermost first, without the whole model."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _shown(node: fx.Node) -> bool:
    """Whether a node is shown: sizes are not, and parameters have their own boxes."""
    value = node.meta.get("val")
    several = isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value)
    return node.op == "output" or (node.op != "get_attr" and (isinstance(value, Tensor) or several))


def _operator(node: fx.Node) -> str:
    if node.op != "call_function":
        return {"placeholder": "input"}.get(node.op, node.op)
    return str(getattr(node.target, "__name__", node.target)).removeprefix("aten.").partition(".")[0]


def _fold_quiet(calls: Sequence[GraphCall]) -> list[GraphCall]:
    """Fold operators that touch no group, mostly positions and masks, where a module has more than a few."""
    quiet = {c.name for c in calls if not c.groups and not c.tensors and c.operator not in ("input", "output")}
    many = Counter(call.module for call in calls if call.name in quiet)
    return [_apart(c, "without a group") if c.name in quiet and many[c.module] > FEW else c for c in calls]


def _in_parts(calls: Sequence[GraphCall]) -> list[GraphCall]:
    """Fold the operators of one module into parts if they are too many to show at once."""
    total, before = Counter(call.module for call in calls), defaultdict[str, int](int)
    folded = []
    for call in calls:
        start = before[call.module] // PART * PART
        before[call.module] += 1
        last = min(start + PART, total[call.module])
        folded.append(_apart(call, f"{start + 1} to {last}") if total[call.module] > MOST else call)
    return folded


def _apart(call: GraphCall, what: str) -> GraphCall:
    return replace(call, module=f"{call.module}.{MARK}operators {what}".lstrip("."))
