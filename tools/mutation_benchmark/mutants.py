"""Mutants: a cut program with one mistake, of kinds that a wrong rule, rewrite or save could make."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.groups import Dependencies
from graphprune.ir.program import Program, Rewritten, copy_graph
from graphprune.ir.weights import Layered, Narrowed
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.planning.plan import Plan, make

aten = torch.ops.aten
MASKS = {aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarOther}
#: Operators whose kernels read beyond their arguments where a literal is wrong, which ends the process.
UNCHECKED = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}
SCALES = {aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar}


@dataclass(frozen=True)
class Case:
    """A program with a plan, and what the rewrite made of it."""

    program: Program
    plan: Plan
    small: Program


@dataclass(frozen=True)
class Mutant:
    """A cut program with one mistake."""

    kind: str
    what: str
    program: Program


Mutate = Callable[[Case, Random], Mutant | None]


def other_indices(case: Case, random: Random) -> Mutant | None:
    """All tensors of a group retain another index than the plan says."""
    return _other_plan(case, random, "an index in place of another", lambda row, new: [*row[:-1], new])


def too_many(case: Case, random: Random) -> Mutant | None:
    """All tensors of a group retain an index too many."""
    return _other_plan(case, random, "an index too many", lambda row, new: [*row, new])


def too_few(case: Case, random: Random) -> Mutant | None:
    """All tensors of a group retain an index too few."""
    return _other_plan(case, random, "an index too few", lambda row, new: row[:-1])


def _other_plan(case: Case, random: Random, kind: str, change: Callable[[list[int], int], list[int]]) -> Mutant | None:
    dependencies = case.program.fact(Dependencies)
    sizes = {name: dependencies.by_name[name].size for name in case.plan.groups}
    cut = [name for name, width in case.plan.widths.items() if width < sizes[name]]
    if not cut:
        return None
    name = random.choice(cut)
    rows = []
    for row in case.plan.groups[name]:
        shuffled = random.sample(row, len(row))
        removed = random.choice([i for i in range(sizes[name]) if i not in row])
        rows.append(tuple(sorted(change(shuffled, removed))))
    if not rows[0]:
        return None
    wrong = make(case.program, dependencies, {**case.plan.groups, name: tuple(rows)})
    return Mutant(kind, name, rewrite(case.program, wrong))


def swapped(case: Case, random: Random) -> Mutant | None:
    """Two retained indices of one tensor are swapped."""
    name, dim = _place(case, random) or ("", 0)
    if not name or (tensor := case.small.weights[name]).shape[dim] < 2:
        return None
    order = list(range(tensor.shape[dim]))
    i, j = random.sample(order, 2)
    order[i], order[j] = j, i
    return _with_tensor(case, "two indices swapped", name, tensor.index_select(dim, torch.tensor(order)), f"dim {dim}")


def shifted(case: Case, random: Random) -> Mutant | None:
    """One index of one tensor holds the numbers of an index that was removed."""
    name, dim = _place(case, random) or ("", 0)
    keep = case.plan.keep[name][dim] if name else torch.zeros(0)
    if keep.dim() != 1 or not len(keep):
        return None
    removed = sorted(set(range(case.program.weights[name].shape[dim])) - set(keep.tolist()))
    if not removed:
        return None
    wrong = keep.clone()
    wrong[random.randrange(len(keep))] = random.choice(removed)
    dims = {**case.plan.keep[name], dim: wrong}
    scaled = case.small.weights[name], Narrowed(case.program.weights, {name: case.plan.keep[name]})[name]
    if not torch.equal(*scaled):
        return None  # it absorbs a factor
    tensor = Narrowed(case.program.weights, {name: dims})[name]
    return _with_tensor(case, "a weight of another index", name, tensor, f"dim {dim}")


def stale(case: Case, random: Random) -> Mutant | None:
    """A buffer retains its first indices, whatever the plan says; an uncut one holds other numbers."""
    buffers = [n for n in case.small.shapes() if n not in case.program.parameters]
    if not buffers:
        return None
    name = random.choice(buffers)
    old, new = case.program.weights[name], case.small.weights[name]
    if old.shape != new.shape:
        return _with_tensor(case, "a stale buffer", name, old[tuple(slice(n) for n in new.shape)].clone(), "first")
    other = new.roll(1, 0) if new.dim() and new.shape[0] > 1 else new * 2 if new.is_floating_point() else new + 1
    return _with_tensor(case, "a stale buffer", name, other, "other numbers")


def noise(case: Case, random: Random) -> Mutant | None:
    """A weight is noise of the same mean and deviation."""
    names = [name for name in case.small.shapes() if name in case.program.parameters]
    name = random.choice(names)
    return _with_tensor(case, "noise in place of a weight", name, _noise(case.small.weights[name], random), "")


def all_noise(case: Case, random: Random) -> Mutant | None:
    """All weights are noise."""
    names = [name for name in case.small.shapes() if name in case.program.parameters]
    new = {name: _noise(case.small.weights[name], random) for name in names}
    return Mutant("noise in place of all weights", "", _with_tensors(case.small, new))


def _noise(tensor: Tensor, random: Random) -> Tensor:
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    if not tensor.is_floating_point():
        return tensor
    drawn = torch.randn(tensor.shape, generator=generator)
    spread = float(tensor.float().std(correction=0)) or float(tensor.float().abs().mean()) or 1.0
    return (drawn * spread + float(tensor.float().mean())).to(tensor.dtype)


def literal(case: Case, random: Random) -> Mutant | None:
    """A literal of a call is another one."""
    places = [
        (node, path, value)
        for node in case.small.graph.nodes
        if node.op == "call_function" and not {node.target, *(user.target for user in node.users)} & UNCHECKED
        for path, value in pytree.tree_flatten_with_path((node.args, dict(node.kwargs)))[0]
        if isinstance(value, (bool, int, float)) and (isinstance(value, bool) or abs(value) < 2**40)
    ]
    if not places:
        return None
    node, path, value = random.choice(places)
    other = _other(value, random)

    def change(copy: fx.Node) -> None:
        args, kwargs = pytree.tree_map_with_path(
            lambda at, x: other if at == path else x, (copy.args, dict(copy.kwargs))
        )
        copy.args, copy.kwargs = args, kwargs

    return _edited(case, "a wrong literal", node, change, f"{value} -> {other}")


def _other(value: float, random: Random) -> float:
    """Another literal of the type of `value`."""
    if isinstance(value, bool):
        return not value
    return value + random.choice((1, -1)) if isinstance(value, int) else 1.5 * value + 0.01


def unscaled(case: Case, random: Random) -> Mutant | None:
    """A scale is missing: the factor of a weight, a product with a number, or the scale of attention."""
    scales = dict(case.small.fact(Rewritten).scales)
    nodes: list[Any] = [n for n in case.small.graph.nodes if n.target in SCALES and isinstance(n.args[1], (int, float))]
    fused = [n for n in case.small.graph.nodes if n.kwargs.get("scale") is not None]
    options: list[Any] = [*scales, *nodes, *fused]
    if not options:
        return None
    chosen = random.choice(options)
    if isinstance(chosen, str):
        return _with_tensor(case, "a missing scale", chosen, case.small.weights[chosen] / scales[chosen], "weight")
    if chosen in fused:
        return _edited(
            case, "a missing scale", chosen,
            lambda copy: setattr(copy, "kwargs", {**copy.kwargs, "scale": 1.0}), "attention",
        )  # fmt: skip
    return _edited(case, "a missing scale", chosen, lambda copy: copy.update_arg(1, 1.0), str(chosen.args[1]))


def unmasked(case: Case, random: Random) -> Mutant | None:
    """A mask is ignored."""
    nodes = [n for n in case.small.graph.nodes if n.target in MASKS and _masked(n) is not None]
    fused = [n for n in case.small.graph.nodes if n.target is aten.scaled_dot_product_attention.default and _masks(n)]
    if not nodes + fused:
        return None
    node = random.choice(nodes + fused)
    if node in fused:
        return _edited(case, "a mask ignored", node, _without_mask, "attention")
    return _edited(case, "a mask ignored", node, lambda copy: copy.replace_all_uses_with(_masked(copy)), node.name)


def _masked(node: fx.Node) -> Any:
    """What a mask is applied to."""
    value: Any = node.args[1] if node.target in (aten.where.self, aten.where.ScalarOther) else node.args[0]
    same = isinstance(value, fx.Node) and value.meta["val"].shape == node.meta["val"].shape
    return value if same and value.meta["val"].dtype == node.meta["val"].dtype else None


def _masks(node: fx.Node) -> bool:
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal")
    return mask is not None or bool(causal)


def _without_mask(node: fx.Node) -> None:
    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("attn_mask", "is_causal", "dropout_p")}
    node.args = node.args[:3]


KINDS: Sequence[Mutate] = (
    other_indices, too_many, too_few, swapped, shifted, stale, noise, all_noise, literal, unscaled, unmasked,
)  # fmt: skip


def mutants(case: Case, count: int, random: Random) -> Iterator[Mutant]:
    """Mutants of a cut program, about `count` of them, of all kinds that it can have."""
    shares: Mapping[Mutate, int] = {literal: 4, all_noise: 0}
    for kind in KINDS:
        times = max(1, count * shares.get(kind, 2) // (2 * len(KINDS)))
        seen = set()
        for _ in range(times):
            try:
                mutant = kind(case, random)
            except Exception:  # the mistake makes no program
                continue
            if mutant and (mutant.kind, mutant.what) not in seen:
                seen.add((mutant.kind, mutant.what))
                yield mutant


def _place(case: Case, random: Random) -> tuple[str, int] | None:
    """A dimension of a tensor that was cut."""
    places = [(name, dim) for name, dims in case.plan.keep.items() for dim in dims if name in case.small.shapes()]
    return random.choice(places) if places else None


def _with_tensor(case: Case, kind: str, name: str, tensor: Tensor, how: str) -> Mutant:
    return Mutant(kind, f"{name} {how}".strip(), _with_tensors(case.small, {name: tensor}))


def _with_tensors(program: Program, tensors: Mapping[str, Tensor]) -> Program:
    return replace(program, weights=Layered((dict(tensors), program.weights)))


def _edited(case: Case, kind: str, node: fx.Node, change: Callable[[fx.Node], object], how: str) -> Mutant:
    """A copy of the graph in which one node is changed."""
    graph = copy_graph(case.small.graph)
    for old, copy in zip(case.small.graph.nodes, graph.nodes, strict=True):
        if old is node:
            change(copy)
            break
    graph.lint()
    return Mutant(kind, f"{node.name} {how}", replace(case.small, graph=graph))
