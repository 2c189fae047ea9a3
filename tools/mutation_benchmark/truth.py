"""Ground truth: whether a mutant changes any output, on inputs that are drawn independently of the proof's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.execution.equivalence import run
from graphprune.ir.program import Inputs, Program

LEAST = 1e-3  # of the typical size of an output
SENTINEL = 1e30  # entries that are greater are no numbers, but marks
GROWTHS = (0, 0, 1, 3, 0, 7, 2, 13)  # added to every dynamic size, case by case
aten = torch.ops.aten
INDEXED = {aten.embedding.default: (1, 0), aten.index_select.default: (2, 0)}


@dataclass(frozen=True)
class Reference:
    """Inputs that reach many branches, and what the masked original gives for them."""

    cases: Sequence[Inputs]
    outputs: Sequence[list[Tensor]]

    @classmethod
    def of(cls, masked: Program) -> "Reference":
        """The cases that the original accepts."""
        module, pairs = masked.module(), []
        for case in drawn_cases(masked):
            try:
                pairs.append((case, _leaves(run(module, *case))))
            except Exception:  # sizes that it does not accept
                continue
        return cls([case for case, _ in pairs], [outputs for _, outputs in pairs])

    def is_changed_by(self, program: Program) -> bool:
        """Whether any output differs by more than `LEAST` of its typical size, or cannot be computed."""
        module = program.module()
        for case, expected in zip(self.cases, self.outputs, strict=True):
            try:
                outputs = _leaves(run(module, *case))
            except Exception:
                return True
            if any(differs(a, b) for a, b in zip(expected, outputs, strict=True)):
                return True
        return False


def differs(a: Tensor, b: Tensor) -> bool:
    """Whether an output is not the reference `a`: in shape, in what is no ordinary number, or in the numbers."""
    if a.shape != b.shape:
        return True
    ordinary, other = _ordinary(a), _ordinary(b)
    if not torch.equal(ordinary, other):
        return True
    if not bool(ordinary.any()):
        return False
    x, y = a[ordinary].to(torch.complex128), b[ordinary].to(torch.complex128)
    if not bool((unequal := x != y).any()):
        return False
    scale = 1e3 * float(x[unequal].abs().median()) + 1e-12  # marks such as -1e9 are far beyond
    typical = float(x[x.abs() <= scale].abs().square().mean().sqrt())
    return float((x - y).abs().max()) > LEAST * max(typical, 1e-12)


def _ordinary(x: Tensor) -> Tensor:
    return torch.isfinite(x) & (x.abs() < SENTINEL) if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)


def _leaves(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, Tensor | int | float)]


def drawn_cases(program: Program) -> Iterator[Inputs]:
    """Random inputs of many sizes, scales and values; the example comes first."""
    yield program.inputs
    leaves, spec = pytree.tree_flatten((program.inputs[0], dict(program.inputs[1])))
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for i, growth in enumerate(GROWTHS):
        generator = torch.Generator().manual_seed(7919 + i)
        new = [_drawn(leaf, node, generator, growth, i) for leaf, node in zip(leaves, nodes, strict=True)]
        args, kwargs = pytree.tree_unflatten(new, spec)
        yield args, kwargs


def _drawn(leaf: Any, node: fx.Node, generator: torch.Generator, growth: int, case: int) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.numel():
        return leaf
    sizes: Mapping[int, Any] = dict(enumerate(node.meta["val"].shape))
    shape = [n if isinstance(sizes[d], int) else n + growth for d, n in enumerate(leaf.shape)]
    if leaf.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.7
    if leaf.is_floating_point() or leaf.is_complex():
        spread = float(leaf.abs().float().std(correction=0)) or 1.0
        scale = (1.0, 3.0, 0.5)[case % 3] * max(spread, 0.1)
        drawn = torch.randn(shape, generator=generator) * scale + float(leaf.real.float().mean())
        return drawn.to(leaf.dtype)
    return _integers(leaf, node, shape, generator)


def _integers(leaf: Tensor, node: fx.Node, shape: list[int], generator: torch.Generator) -> Tensor:
    """Rows of a table where they index one; zeros after ones or before them for a mask; else the example's range."""
    rows = list(_indexed_rows(node))
    low, high = (0, min(rows)) if rows else (int(leaf.min()), int(leaf.max()) + 1)
    if not rows and low >= 0 and high == 2 and len(shape) == 2:
        kept = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
        places = torch.arange(shape[1]).expand(shape)
        return (places < kept if int(kept.sum()) % 2 else places >= shape[1] - kept).to(leaf.dtype)
    return torch.randint(low, high, shape, generator=generator).to(leaf.dtype)


def _indexed_rows(node: fx.Node) -> Iterator[int]:
    """Numbers of rows of the tables that an input indexes."""
    for user in node.users:
        target: Any = user.target
        index, table = INDEXED.get(target, (0, 0))
        source = user.args[table]
        if index and user.args[index] is node and isinstance(source, fx.Node):
            yield int(source.meta["val"].shape[0])
