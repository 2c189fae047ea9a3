"""What a rule claims of a call, tried on numbers."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.axes.algebra import primes, resolve
from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.index_sets import RetainedByPrime
from graphprune.axes.rule import Dims, Zeros
from graphprune.execution.equivalence import mask_program
from graphprune.ir.program import Program
from graphprune.ir.weights import narrow
from graphprune.passes.analysis.find_groups import analyze_uncached
from graphprune.passes.operators import RULES
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.planning.index_scores import rows_of
from graphprune.planning.plan import Rows, indices_along, make, primes_to_keep
from tests.passes.operators.calls import Call, Reader, program, summed

TOLERANCE = 1e-6


class BrokenClaim(AssertionError):  # noqa: N818 - a failed check
    """A rule claims something that does not hold."""


def require(holds: bool, call: Call, claim: str) -> None:
    """Check a claim about a call.

    Raises:
        BrokenClaim: if it does not hold.
    """
    if not holds:
        raise BrokenClaim(f"{call}: {claim}")


def close(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two lists of outputs have the same numbers."""
    pairs = list(zip(a, b, strict=True))
    return all(
        x.shape == y.shape and torch.allclose(x.double(), y.double(), TOLERANCE, TOLERANCE, equal_nan=True)
        for x, y in pairs
    )


def check_cuts(call: Call, random: Random, thorough: bool = False) -> int:
    """Cut all free axes around a call: what is called exact equals masking; return the number of such cuts."""
    cuts = 0
    for operands, reader in _settings(call, random, thorough):
        whole, _ = program(call, operands, reader)
        found = analyze_uncached(whole)
        whole = whole.with_facts(found)
        exact = [group for group in found.groups if group.maskable]
        for groups in filter(None, [exact, [random.choice(exact)] if thorough and exact else [], found.groups]):
            law = "exact" if groups is not found.groups else "free"
            claim = f"{operands} {reader.__name__ if reader else ''} {[g.name for g in groups]} {law}"
            require(_is_cut(whole, found, groups, random, law == "exact"), call, claim)
            cuts += law == "exact"
    return cuts


def _settings(call: Call, random: Random, thorough: bool) -> Iterator[tuple[tuple[str, ...], Reader | None]]:
    """Kinds of operands, and what reads the outputs."""
    count = sum(t.is_floating_point() for t in call.tensors)
    rank = max(y.dim() for y in call.run())
    readers = [None, *(summed(dim, shift) for dim in range(rank) for shift in (0.0, 1.0))]
    plain = ("raw",) * count
    mixed = [tuple(random.choice(("raw", "any", "one")) for _ in plain) for _ in range(4 if thorough else 1)]
    for operands in dict.fromkeys([plain, *mixed]):
        for reader in readers if thorough else [None, random.choice(readers)]:
            yield operands, reader


def _is_cut(whole: Program, found: Dependencies, groups: Sequence[Group], random: Random, exact: bool) -> bool:
    """Whether a random cut of some groups equals masking, or at least runs."""
    nodes: Any = next(node for node in whole.graph.nodes if node.op == "output").args[0]
    outputs_dims: list[Any] = [found.values[node.name] for node in nodes]
    plan = make(whole, found, {group.name: _rows(found, group, random) for group in groups})
    if not all(_can_select(dims, primes_to_keep(found, plan.groups)) for dims in outputs_dims):
        plan = make(whole, found, {name: rows[:1] for name, rows in plan.groups.items()})
    outputs = _run(rewrite(whole, plan))
    keep = primes_to_keep(found, plan.groups)
    masked = _run(mask_program(whole, plan.keep))
    expected = []
    for dims, y in zip(outputs_dims, masked, strict=True):
        expected.append(_retained(y, {dim: indices_along(dims, dim, keep) for dim in range(y.dim())}))
    if not exact:
        return [y.shape for y in outputs] == [y.shape for y in expected]
    return close(expected, outputs)


def _can_select(dims: Dims, retained: RetainedByPrime) -> bool:
    """Whether owners of rows are whole dimensions of a value, or come before the rows in a product."""
    whole = set(map(resolve, dims))
    for order in (list(primes(axis)) for axis in dims):
        owners = {p: retained[p].owner for p in order if p in retained and retained[p].owner}
        if not all(q in whole or (q in order and order.index(q) < order.index(p)) for p, q in owners.items()):
            return False
    return True


def _retained(y: Tensor, indices: dict[int, Tensor]) -> Tensor:
    """The retained indices of a value: a dimension is cut before those on whose indices its own depend."""
    while indices:
        owners = {
            i for dim, index in indices.items() for i, n in enumerate(index.shape) if index.dim() > 1 < n and i != dim
        }
        dim = min(indices.keys() - owners)
        y = narrow(y, dim, indices.pop(dim))
    return y


def _rows(found: Dependencies, group: Group, random: Random) -> Rows:
    """Random retained indices; where they are linked, mostly other ones in every row."""
    size = random.choice([n for n in range(group.least, group.size + 1) if n % group.unit == 0 or n == group.size])
    count = rows_of(group, found) if random.random() < 0.8 else 1
    return tuple(tuple(sorted(random.sample(range(group.size), size))) for _ in range(count))


def _run(whole: Program) -> list[Tensor]:
    with torch.no_grad():
        return list(whole.module()())


def check_factors(call: Call, random: Random) -> None:
    """Inputs with factors give the output that its `scale` says."""
    _, node = program(call)
    if not all(y.is_floating_point() for y in call.run()):
        return
    floats = [t for t in call.tensors if t.is_floating_point()]
    factors = {id(t): random.choice((1.0, 2.0, 0.5)) for t in floats}
    places = {f"t{i}": factors.get(id(t), 1.0) for i, t in enumerate(call.tensors)}
    scale = RULES[call.target].scale(node, lambda v: places[str(v.target)] if isinstance(v, fx.Node) else 1.0)
    if scale is not None:
        scaled = call.replace(lambda t: t * factors[id(t)] if id(t) in factors else t).run()
        require(close([scale * y for y in call.run()], scaled), call, f"scale {scale} of {list(factors.values())}")


def check_linear(call: Call, random: Random) -> None:
    """The output is affine in each of the arguments that a rule calls linear, and linear without summands."""
    rule = RULES[call.target]
    for i in rule.linear_in:
        if i < len(call.args) and isinstance(call.args[i], Tensor) and call.args[i].is_floating_point():
            old = call.args[i]
            other = old.flip(0) * 0.3 + 0.1
            runs = [_with(call, i, x).run() for x in (old, other, old + other, torch.zeros_like(old))]
            sums = [a + b - zero for a, b, _, zero in zip(*runs, strict=True)]
            require(close(sums, runs[2]), call, f"linear in argument {i}")
            if all(call.args[j] is None for j in rule.summands if j < len(call.args)):
                require(not any(y.any() for y in runs[3]), call, f"zero for zeros in argument {i}")


def _with(call: Call, i: int, x: Tensor) -> Call:
    return Call(call.target, (*call.args[:i], x, *call.args[i + 1 :]), call.kwargs)


def check_moved(call: Call) -> None:
    """Inputs that are one number everywhere give that number, where a rule says that it only moves values."""
    rule = RULES[call.target]
    if rule.zeros is not Zeros.MOVED:
        return
    selecting = {id(call.args[i]) for i in rule.selects if i < len(call.args)}
    selecting |= {id(t) for i in rule.selects if isinstance(call.args[i], (list, tuple)) for t in call.args[i]}
    same = call.replace(lambda t: t if id(t) in selecting or not t.is_floating_point() else torch.full_like(t, 0.7))
    for y in same.run():
        require(not y.is_floating_point() or bool((y == 0.7).all()), call, "moves values")


def check_rowwise(call: Call, random: Random) -> None:
    """Another number in one row changes only that row."""
    rule, before = RULES[call.target], call.run()
    rows = call.tensors[0].shape[0] if call.tensors[0].dim() else 0
    found = analyze_uncached(program(call)[0])
    firsts = [_first(found, name) for name in ("t0", *(n.name for n in _outputs(call)))]
    if not rule.rowwise or rows < 2 or any(first != firsts[0] for first in firsts):
        return
    row = random.randrange(rows)
    shifted = call.replace(lambda t: _shifted(t, row, call.tensors[0]) if t.is_floating_point() else t)
    for a, b in zip(before, shifted.run(), strict=True):
        others = [i for i in range(rows) if i != row]
        require(torch.equal(a[others], b[others]), call, "row by row")


def _first(found: Dependencies, name: str) -> object:
    dims: Any = found.values.get(name) or found.tensors.get(name) or ()
    return [id(p) for p in primes(resolve(dims[0]))] + [len(dims), dims[0].size] if dims else None


def _outputs(call: Call) -> list[fx.Node]:
    graph = program(call)[0].graph
    outputs: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    return list(outputs)


def _shifted(t: Tensor, row: int, like: Tensor) -> Tensor:
    """The tensor with other numbers in a row, if it has rows."""
    if t.shape[:1] != like.shape[:1] or t.dim() != like.dim():
        return t
    t = t.clone()
    t[row] += 1.3
    return t


def check_layout(call: Call) -> None:
    """What is reported of a linear operator or a permutation gives its outputs."""
    whole, node = program(call)
    outputs = call.run()
    order = RULES[call.target].permutation(node, call.tensors[0].dim())
    if order is not None:
        require(torch.equal(outputs[0], call.tensors[0].permute(order)), call, f"permutation {order}")
    for consumer in analyze_uncached(whole).consumers:
        if consumer.outputs is not None:
            x, weight = whole.weights[consumer.x], whole.weights[consumer.weight]
            product = consumer.features(x) @ consumer.matrix(weight).T
            bias = whole.weights[consumer.bias] if consumer.bias else 0
            rows = consumer.outputs(outputs[0])
            require(consumer.bias_at is None or close([product + bias], [rows]), call, "outputs of a linear operator")
            require(torch.equal(consumer.restore(consumer.matrix(weight)), weight), call, "restored weight")


def check_statistics(call: Call) -> None:
    """A shift of the input and of the stored mean, by channel, changes nothing."""
    _, node = program(call)
    if (stored := RULES[call.target].running_statistics(node)) is None:
        return
    mean: Any = stored[0]
    at = int(str(mean.target).removeprefix("t"))
    channels = call.tensors[at]
    shape = [-1, *[1] * (call.tensors[0].dim() - 2)]
    moved = {id(call.tensors[0]): call.tensors[0] + 0.5 * channels.view(shape), id(channels): 1.5 * channels}
    require(close(call.run(), call.replace(lambda t: moved.get(id(t), t)).run()), call, "stored mean")


def check(call: Call, random: Random, thorough: bool = False) -> int:
    """Try every claim; return the number of exact cuts.

    Raises:
        BrokenClaim: if one does not hold.
    """
    check_factors(call, random)
    check_linear(call, random)
    check_moved(call)
    check_rowwise(call, random)
    check_layout(call)
    check_statistics(call)
    return check_cuts(call, random, thorough)
