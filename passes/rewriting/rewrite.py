"""The rewrite: parameters are indexed, literals rebuilt, and the graph is retraced on fake tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher

from graphprune.axes.algebra import Axis, Prime, primes
from graphprune.axes.groups import Dependencies
from graphprune.axes.index_sets import RetainedByPrime, retained_indices, width
from graphprune.axes.rule import Dims
from graphprune.errors import GraphpruneError, InvalidProgram, because
from graphprune.execution.interface_cut import InterfaceCut
from graphprune.ir.printer import neighborhood
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import Narrowed, Scaled
from graphprune.passes.analysis.mean_rescaling import Rescaling
from graphprune.passes.operators import RULES
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.plan import Plan, bind, indices_along, primes_to_keep
from graphprune.writeback.module import write_back


def rewrite(program: Program, plan: Plan) -> Program:
    """A new program with the indices that `plan` retains; the original one is unchanged.

    Raises:
        PlanError: if the plan does not fit the program.
        InvalidProgram: if the rewritten graph is inconsistent.
    """
    dependencies = program.fact(Dependencies)
    keep = bind(program, dependencies, plan)
    graph, scales = _Rewriter(program, dependencies, keep).run()
    follow = partial(write_back, rewrite)
    rewritten = Rewritten(program, plan.keep, plan.groups, scales, follow)
    weights = Scaled(Narrowed(program.weights, plan.keep), scales)
    inputs = interface_cut(program, plan).given(program.inputs)
    small = program.with_facts(rewritten, graph=graph, weights=weights, inputs=inputs)
    return small.without(Dependencies)  # the axes of the old graph do not hold for the new one


def interface_cut(program: Program, plan: Plan) -> InterfaceCut:
    """The retained indices of the inputs and outputs that may be narrower."""
    if not program.state:
        return InterfaceCut()
    dependencies = program.fact(Dependencies)
    keep = primes_to_keep(dependencies, plan.groups)

    def cut(node: object) -> dict[int, Tensor]:
        dims = dependencies.values.get(node.name, ()) if isinstance(node, fx.Node) else ()
        axes = [axis for axis in dims if isinstance(axis, Axis)]
        changed = [dim for dim, axis in enumerate(axes) if any(p in keep for p in primes(axis))]
        return {dim: indices_along(axes, dim, keep) for dim in changed}

    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    outputs = pytree.tree_leaves(program.graph.output_node().args[0])
    inner, outer = ({i: cut(node) for i, node in enumerate(nodes)} for nodes in (placeholders, outputs))
    return InterfaceCut({i: dims for i, dims in inner.items() if dims}, {i: d for i, d in outer.items() if d})


@dataclass(frozen=True)
class CutAxes:
    """A cut as rules see it while literals are rebuilt; see `axes.rule.Cut`."""

    dependencies: Dependencies
    keep: RetainedByPrime

    @cached_property
    def widths(self) -> Mapping[Prime, int]:
        """The new sizes of all cut axes."""
        return {p: rows.width for p, rows in self.keep.items()}

    def dims(self, value: object) -> Dims:
        """The axes of a value; none for a literal."""
        return self.dependencies.values.get(value.name, ()) if isinstance(value, fx.Node) else ()  # type: ignore[return-value]

    def width(self, axis: Axis) -> int:
        """The size of an axis after the cut."""
        return width(axis, self.widths)

    def changed(self, axis: Axis) -> bool:
        """Whether the axis contains a prime that is cut."""
        return any(p in self.keep for p in primes(axis))

    def count_retained(self, axis: Axis, start: int, end: int) -> int:
        """The number of retained indices from `start` to `end`."""
        return sum(start <= i < end for i in retained_indices(axis, self._shared()))

    def _shared(self) -> RetainedByPrime:
        """One row of each group: linked rows are equally long, so that any of them has the number of indices."""
        return {p: type(rows)(rows.rows[:1]) for p, rows in self.keep.items()}

    def mean_gain(self, axis: Axis) -> float:
        """The ratio of a mean over the cut axis to the mean with zeros at the removed indices."""
        groups = (self.dependencies.by_prime[p] for p in primes(axis) if p in self.keep)
        return axis.size / self.width(axis) if any(group.rescaled for group in groups) else 1.0

    def touches(self, node: fx.Node) -> bool:
        """Whether the node reads or computes a value that changes."""
        values = (node, *node.all_input_nodes)
        return any(self.changed(axis) for value in values for axis in self.dependencies.axes_of(value.name))


@dataclass
class _Rewriter:
    """One walk over the graph: every node is copied, and the nodes that a cut touches are rebuilt and retraced."""

    program: Program
    dependencies: Dependencies
    keep: RetainedByPrime

    def run(self) -> tuple[fx.Graph, dict[str, float]]:
        """The new graph, and the factors of parameters."""
        cut = CutAxes(self.dependencies, self.keep)
        graph, new = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self.program.graph.nodes:
            new[node] = graph.node_copy(node, new.__getitem__)
            if node.name not in self.dependencies.values or not cut.touches(node):
                continue  # a node without a tensor, such as a dynamic size, has no axis that could change
            if node.op == "call_function":
                call = RULES[node.target].rebuild(cut, node)
                new[node].target = call.target
                new[node].args, new[node].kwargs = pytree.tree_map_only(
                    fx.Node, new.__getitem__, (call.args, call.kwargs)
                )
            self._retrace(cut, node, new[node])
        graph._codegen = self.program.graph._codegen
        rescaling = Rescaling(self.program, cut, {copy: old for old, copy in new.items()}).run(graph)
        graph.lint()
        return graph, rescaling.weights

    def _retrace(self, cut: CutAxes, old: fx.Node, new: fx.Node) -> None:
        """Set the fake value of the new node, and check its shape against the axes."""
        if old.op == "call_function":
            new.meta["val"] = self._call(new)
        else:
            new.meta["val"] = _narrowed(old.meta["val"], [cut.width(axis) for axis in cut.dims(old)])
        self._check(cut, old, new)

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
        try:
            with _mode(node), enable_python_dispatcher():  # kernels without support of symbols are decomposed
                return node.target(*args, **kwargs)  # type: ignore[operator]
        except GraphpruneError:
            raise
        except Exception as fault:  # an error of any fake kernel has one meaning: the graph is inconsistent
            raise InvalidProgram(f"after the cut, {node.name} fails{because(fault)}\n{neighborhood(node)}") from fault

    def _check(self, cut: CutAxes, old: fx.Node, new: fx.Node) -> None:
        dims, val = self.dependencies.values[old.name], new.meta["val"]
        pairs = zip(dims, val, strict=True) if isinstance(dims, list) else [(dims, val)]
        for axes, tensor in pairs:
            for dim, axis in enumerate(axes):
                got = tensor.shape[dim]
                if isinstance(got, int) and got != cut.width(axis):
                    raise InvalidProgram(
                        f"after the cut, dimension {dim} of {new.name} has size {got}, the axes say {cut.width(axis)}\n"
                        f"{neighborhood(new)}\nThe rule of {new.target} is wrong: please report it."
                    )


def _mode(node: fx.Node) -> Any:
    """The fake mode of the inputs of a node, or of its own old value if it has no inputs."""
    fakes = (n.meta.get("val") for n in (*node.all_input_nodes, node))
    modes = [fake.fake_mode for val in fakes for fake in pytree.tree_leaves(val) if hasattr(fake, "fake_mode")]
    return modes[0]


def _narrowed(val: Any, sizes: list[int]) -> Any:
    """A fake tensor like `val` with its static sizes replaced."""
    shape = [new if isinstance(old, int) else old for old, new in zip(val.shape, sizes, strict=True)]
    with val.fake_mode:
        return torch.empty(shape, dtype=val.dtype, device=val.device)


@PASSES.register("rewrite")
@dataclass(frozen=True)
class Rewrite(Pass):
    """Remove the indices that the plan does not retain."""

    name: ClassVar[str] = "rewrite"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Plan)
    makes: ClassVar[tuple[type, ...]] = (Rewritten,)
    invalidates: ClassVar[tuple[type, ...]] = (Dependencies,)
    memory_bounded: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        """The narrower program."""
        return rewrite(program, program.fact(Plan))
