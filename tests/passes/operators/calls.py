"""Calls of operators as data: one operator with its arguments, as a program, and with other arguments."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import getitem
from random import Random
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from graphprune.execution.module_state import seeded
from graphprune.ir.program import Program
from graphprune.passes.operators import RULES
from tests.rule_examples import EXAMPLES, captured

Reader = Callable[[fx.Graph, fx.Node], fx.Node]

#: Values of enumerated strings, by the name of the argument.
STRINGS: dict[str, tuple[Any, ...]] = {
    "reduce": ("sum", "prod", "mean", "amax", "amin", "add", "multiply"),
    "mode": ("constant", "reflect", "replicate", "circular"),
    "rounding_mode": ("floor", "trunc", None),
    "side": ("left", "right"),
    "approximate": ("none", "tanh"),
    "indexing": ("ij", "xy"),
    "ord": ("fro", "nuc", 2, None),
    "padding": ("same", "valid"),
    "norm": ("forward", "ortho", None),
    "driver": (None,),
}
#: Numbers of which others make some kernels end the process.
POSITIVE = (
    "groups", "upscale_factor", "downscale_factor", "stride", "kernel_size", "dilation", "num_groups", "step", "size",
)  # fmt: skip
FIXED = ("dtype", "memory_format", "layout", "device", "pin_memory", "generator")
INTEGERS = (0, 1, 2, -1, 3, -2)
NUMBERS = (0, 1, 2, -1, 0.5, 3, float("inf"), float("-inf"), -0.5)


@dataclass(frozen=True, eq=False)
class Call:
    """An operator with tensors and literals as arguments."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = pytree.tree_map_only(Tensor, lambda t: f"{str(t.dtype)[6:]}{list(t.shape)}", (self.args, self.kwargs))
        return f"{self.target}{shown[0]}{shown[1] or ''}"

    @property
    def tensors(self) -> list[Tensor]:
        """The distinct tensors among the arguments, in order."""
        leaves = [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]
        return list({id(leaf): leaf for leaf in leaves}.values())

    def replace(self, new: Callable[[Tensor], Tensor]) -> "Call":
        """The call with other tensors, the same one wherever one occurs twice."""
        table = {id(tensor): new(tensor) for tensor in self.tensors}
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: table[id(t)], (self.args, self.kwargs))
        return Call(self.target, args, kwargs)

    def run(self, seed: int = 0) -> list[Tensor]:
        """All outputs."""
        with torch.no_grad(), seeded(seed):
            result = self.target(*pytree.tree_map_only(Tensor, Tensor.clone, self.args), **self.kwargs)
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def works(call: Call) -> bool:
    """Whether the operator accepts the arguments, and gives finite numbers that depend on nothing else."""
    try:
        outputs, again = call.run(), call.run(seed=1)
        program(call)
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, AssertionError, ZeroDivisionError):
        return False
    except DynamicOutputShapeException:
        return False
    reasonable = all(bool(torch.isfinite(y).all()) and y.numel() < 5000 for y in outputs)
    known = "empty" not in str(call.target) and all(map(torch.equal, outputs, again))
    return reasonable and known and any(y.numel() for y in outputs)


def program(call: Call, operands: Sequence[str] = (), reader: Reader | None = None) -> tuple[Program, fx.Node]:
    """A program of one call whose tensors are parameters, and the node of the call.

    An operand may be ``raw``, so that it is zero where it is masked, ``one``, so that it is one there, or ``any``.
    Inputs and outputs are state, so that no axis is pinned by them. `reader` adds what reads the outputs.
    """
    graph, fakes = fx.Graph(), FakeTensorMode()
    stored = {f"t{i}": tensor for i, tensor in enumerate(call.tensors)} | {"shift": torch.tensor(0.7).double()}
    nodes = {id(stored[name]): _read(graph, fakes, name, stored[name]) for name in stored}
    kinds = {id(t): kind for t, kind in zip(filter(Tensor.is_floating_point, call.tensors), operands, strict=False)}
    for key, kind in kinds.items():
        if kind != "raw":
            nodes[key] = _apply(graph, torch.ops.aten.cos.default, nodes[key])
        if kind == "any":
            nodes[key] = _apply(graph, torch.ops.aten.add.Tensor, nodes[key], nodes[id(stored["shift"])])
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: nodes[id(t)], (call.args, call.kwargs))
    node = _apply(graph, call.target, *args, **kwargs)
    outputs = [reader(graph, y) if reader else y for y in _items(graph, node)]
    graph.output(tuple(outputs))
    floats = frozenset(name for name, tensor in stored.items() if tensor.is_floating_point() and name != "shift")
    return Program(graph, stored, floats, {}, ((), {}), state=("*",)), node


def _read(graph: fx.Graph, fakes: FakeTensorMode, name: str, tensor: Tensor) -> fx.Node:
    node = graph.create_node("get_attr", name)
    node.meta["val"] = fakes.from_tensor(tensor)
    return node


def _apply(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    node = graph.call_function(target, args, kwargs)
    fake_args, fake_kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (args, kwargs))
    fake: Any = next(n.meta["val"] for n in node.all_input_nodes if isinstance(n.meta["val"], Tensor))
    with fake.fake_mode:
        node.meta["val"] = target(*fake_args, **fake_kwargs)
    return node


def _items(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """The outputs of a node, each as a node."""
    val = node.meta["val"]
    if isinstance(val, Tensor):
        return [node]
    items = []
    for i, item in enumerate(val):
        items.append(graph.call_function(getitem, (node, i)))
        items[-1].meta["val"] = item
    return items


def summed(dim: int, shift: float) -> Reader:
    """Reads a sum of the output over a dimension, less a number for every element."""

    def read(graph: fx.Graph, y: fx.Node) -> fx.Node:
        y = _apply(graph, torch.ops.aten.to.dtype, y, torch.float64)
        if shift:
            y = _apply(graph, torch.ops.aten.sub.Tensor, y, shift)
        return _apply(graph, torch.ops.aten.sum.dim_IntList, y, [dim]) if y.meta["val"].dim() > dim else y

    return read


@cache
def calls() -> tuple[Call, ...]:
    """Every call in the examples of rules, in double precision; one for each pattern of arguments."""
    return tuple({str(call): call for kind, i in EXAMPLES for call in calls_of(kind, i)}.values())


def calls_of(kind: str, i: int) -> list[Call]:
    """Calls in an example, in double precision, without those that are not determined by their arguments."""
    return [call for call in _recorded(captured(kind, i)[0]) if works(call)]


def _recorded(program: Program) -> Iterator[Call]:
    seen: list[Call] = []

    class Recorder(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target in RULES and target is not getitem:
                seen.append(Call(target, args, dict(kwargs)))
            return super().call_function(target, args, kwargs)

    with torch.no_grad():
        Recorder(program.module()).run(*program.flat(*program.inputs))
    for call in seen:
        if call.tensors and call.tensors[0].device.type == "cpu":
            yield redrawn(call.replace(lambda t: t.detach().double() if t.is_floating_point() else t.detach()))


def redrawn(call: Call) -> Call:
    """The call with random numbers in all floating tensors, where it accepts them."""
    generator = torch.Generator().manual_seed(len(call.tensors))

    def draw(t: Tensor) -> Tensor:
        new = torch.randn(t.shape, generator=generator, dtype=torch.float64) if t.dtype == torch.float64 else t
        return new.abs() + 0.1 if t.dtype == torch.float64 and bool((t >= 0).all()) else new

    other = call.replace(draw)
    return other if works(other) else call


def variants(call: Call, random: Random, count: int) -> Iterator[Call]:
    """Other calls that work: of a sibling, with another literal, or with an operand of another shape."""
    changes = (_other_literal, _other_literal, _other_literal, _stretched, _tied, _sibling)
    for _ in range(count):
        other = random.choice(changes)(call, random)
        if other is not None and random.random() < 0.3:
            other = random.choice(changes)(other, random) or other
        if other is not None and works(other):
            yield other


def _other_literal(call: Call, random: Random) -> Call | None:
    """A literal, given or left at its default, has another value."""
    arguments = list(call.target._schema.arguments)
    places = [i for i, a in enumerate(arguments) if "Tensor" not in str(a.type) and a.name not in FIXED]
    if not places:
        return None
    i = random.choice(places)
    argument = arguments[i]
    if argument.kwarg_only:
        old = call.kwargs.get(argument.name, argument.default_value)
        return Call(call.target, call.args, {**call.kwargs, argument.name: _varied(argument, old, random)})
    args = list(call.args)
    while len(args) <= i:
        args.append(arguments[len(args)].default_value)
    args[i] = _varied(argument, args[i], random)
    return Call(call.target, tuple(args), call.kwargs)


def _varied(argument: Any, old: Any, random: Random) -> Any:
    if argument.name in STRINGS and (isinstance(old, str) or old is None):
        return random.choice(STRINGS[argument.name])
    if isinstance(old, (list, tuple)) and old:
        new = list(old)
        i = random.randrange(len(new))
        new[i] = _varied(argument, new[i], random)
        return new
    if isinstance(old, bool):
        return not old
    if isinstance(old, int) and "int" in str(argument.type):
        values = (*INTEGERS, old + 1, old - 1)
        return random.choice([n for n in values if n > 0] if argument.name in POSITIVE else values)
    kind = str(argument.type)
    if "bool" in kind:
        return random.random() < 0.5
    if "float" in kind or "number" in kind:
        return random.choice(NUMBERS)
    return random.choice(([], [0], [0, 1], [-1], None) if "List" in kind else (*INTEGERS, None))


def _stretched(call: Call, random: Random) -> Call | None:
    """A dimension of an operand has size 1, or the first one is missing."""
    candidates = [t for t in call.tensors if t.dim()]
    if not candidates:
        return None
    chosen, dim = random.choice(candidates), random.randrange(3)
    if dim >= chosen.dim():
        return call.replace(lambda t: t[0] if t is chosen else t)
    return call.replace(lambda t: t.narrow(dim, 0, 1).clone() if t is chosen else t)


def _tied(call: Call, random: Random) -> Call | None:
    """Two operands are one tensor."""
    pairs = [
        (a, b) for a in call.tensors for b in call.tensors if a is not b and (a.shape, a.dtype) == (b.shape, b.dtype)
    ]
    if not pairs:
        return None
    first, second = random.choice(pairs)
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: first if t is second else t, (call.args, call.kwargs))
    return Call(call.target, args, kwargs)


def _sibling(call: Call, random: Random) -> Call | None:
    """Another operator of the same rule, with the same arguments."""
    rule = RULES[call.target]
    others = [t for t, r in RULES.items() if r is rule and t is not call.target and not isinstance(t, str)]
    return Call(random.choice(others), call.args, call.kwargs) if others else None
