"""First operator of a program whose value the captured module does not compute."""

from collections import defaultdict
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.ir.program import Program

RTOL = 1e-3  # of the largest value
Shape = tuple[int, ...]


class ComputedValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every value that is computed in the block, and whole tensors of which parts are written."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_shape: dict[Shape, list[Tensor]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        bases = (
            [leaf._base for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
            if isinstance(func, OpOverload) and func._schema.is_mutable
            else []
        )
        for leaf in pytree.tree_leaves((result, bases)):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self.by_shape[tuple(leaf.shape)].append(leaf.detach().clone())
        return result

    def have(self, value: Tensor) -> bool:
        """Whether a value was computed, up to rounding."""
        return any(_alike(value, known) for known in self.by_shape[tuple(value.shape)])


def first_difference(program: Program, inputs: tuple[Any, Any], computed: ComputedValues) -> str:
    """The first operator of the program that computes a value which the module does not, and its line of model code.

    Empty if there is none.
    """
    watch = _Watch(program.module(), computed)
    args, kwargs = inputs
    with torch.no_grad():
        watch.run(*pytree.tree_leaves((args, dict(kwargs))), enable_io_processing=False)
    return "" if watch.first is None else _described(watch.first)


class _Watch(fx.Interpreter):
    """Runs a graph and stops comparing at the first value that is unknown."""

    def __init__(self, module: fx.GraphModule, computed: ComputedValues) -> None:
        super().__init__(module)
        self.computed = computed
        self.first: fx.Node | None = None

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if self.first is None and node.op == "call_function":
            tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
            if not all(map(self.computed.have, tensors)):
                self.first = node
        return value


def _alike(value: Tensor, known: Tensor) -> bool:
    if value.dtype != known.dtype:
        return False
    if not value.is_floating_point() and not value.is_complex():
        return torch.equal(value, known)
    scale = float(known.abs().nan_to_num(0, 0, 0).max()) if known.numel() else 0.0
    return torch.allclose(value, known, rtol=RTOL, atol=RTOL * scale, equal_nan=True)


def _described(node: fx.Node) -> str:
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    places = [i for i, line in enumerate(lines) if line.startswith("File ")]
    where = ": ".join(lines[places[-1] :][:2]) if places else "unknown line of the model"
    return f"{node.name} = {node.target} ({where})"
