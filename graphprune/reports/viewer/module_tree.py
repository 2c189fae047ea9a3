"""The modules and the operators of a graph, as a page folds them."""

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

MARK = "~"  # begins the name of a part that holds some operators of a module, and is no module itself
FEW = 4  # up to this many operators that touch no group are shown with the others
MOST = 150  # more operators than this in one module are folded, in parts of `PART`: their layout would not be readable
PART = 50


@dataclass(frozen=True)
class GraphCall:
    """An operator, an input or the output: its module, the calls and tensors it reads, its groups, and its code.

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
    """The modules that a program runs, and the operators that each of them runs itself."""

    program: Program
    dependencies: Dependencies

    @cached_property
    def owners(self) -> Mapping[str, str]:
        """The path of the innermost module that runs a node, by the node's name.

        Where that was not recorded, it is the one whose tensor the node reads, or else the one around that of the last
        tensor read before: a graph stands in the order in which it runs.
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
        """The class of every module by its path, empty where that is unknown; those around a module come first."""
        classes = {"": ""}
        for node in self.program.graph.nodes:
            stack = dict(_stack(node))
            classes |= {path: str(cls).rpartition(".")[2] for path, cls in stack.items()}
            classes |= {} if stack else dict.fromkeys(_around(self.owners[node.name]), "")
        return {path: classes[path] for path in sorted(classes, key=lambda path: (path.count("."), bool(path)))}

    def nearest(self, path: str) -> str:
        """The module of this path, or the innermost around it that is run; the whole model has the empty path."""
        return next((path for path in _around(path) if path in self.classes), "")

    @cached_property
    def calls(self) -> tuple[GraphCall, ...]:
        """The operators of the graph, in order; where a module has too many to be shown, they are set apart."""
        calls = [self._call(node) for node in self.program.graph.nodes if _shown(node)]
        known = {call.name for call in calls}
        calls = [replace(call, inputs=tuple(name for name in call.inputs if name in known)) for call in calls]
        return tuple(_in_parts(_quiet_apart(calls)))

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
    """The paths and classes of the modules that run a node, the outermost first."""
    for path, cls in (node.meta.get("nn_module_stack") or {}).values():
        if "_empty_nn_module_stack" not in path:
            yield path.partition("@")[0], cls  # a module that is called again has a mark behind its path


def _around(path: str) -> list[str]:
    """A path and all around it, the innermost first, without that of the whole model."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _shown(node: fx.Node) -> bool:
    """Is it a value to show? Sizes are not, and parameters have boxes of their own."""
    value = node.meta.get("val")
    several = isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value)
    return node.op == "output" or (node.op != "get_attr" and (isinstance(value, Tensor) or several))


def _operator(node: fx.Node) -> str:
    if node.op != "call_function":
        return {"placeholder": "input"}.get(node.op, node.op)
    return str(getattr(node.target, "__name__", node.target)).removeprefix("aten.").partition(".")[0]


def _quiet_apart(calls: Sequence[GraphCall]) -> list[GraphCall]:
    """Set apart the operators that touch no group where a module has more than a few: positions and masks, mostly."""
    quiet = {c.name for c in calls if not c.groups and not c.tensors and c.operator not in ("input", "output")}
    many = Counter(call.module for call in calls if call.name in quiet)
    return [_apart(c, "without a group") if c.name in quiet and many[c.module] > FEW else c for c in calls]


def _in_parts(calls: Sequence[GraphCall]) -> list[GraphCall]:
    """Fold the operators of one module in parts if they are too many to be seen at once."""
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
