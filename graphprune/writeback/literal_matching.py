"""Values that the numbers of a module must have, from the literals of its rewritten graph."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice, product
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from graphprune.ir.program import Program
from graphprune.writeback.attribute_slots import Slot
from graphprune.writeback.size_tracing import ForwardLine, Provenance, Use, Values

TRIALS = 32
_FORWARD = re.compile(r'File "(.*)", line (\d+), in forward')


@dataclass(frozen=True)
class Literal:
    """A number in the arguments of a node, before and after the cut."""

    node: str
    before: float
    after: float


@dataclass(frozen=True)
class SizeConstraint:
    """The value after the cut, given by a literal, of a number that is computed from slots."""

    provenance: Provenance
    literal: Literal


def size_constraints(module: nn.Module, uses: Iterable[Use], original: Program, small: Program) -> list[SizeConstraint]:
    """Constraints from matching the traced numbers of each line, in order, with the graph's literals of that line."""
    by_line: dict[ForwardLine, list[Use]] = defaultdict(list)
    for use in uses:
        by_line[use.line].append(use)
    matched = []
    for line, literals in _literals(module, original, small).items():
        in_line = by_line[line]
        blocks = SequenceMatcher(None, [u.value for u in in_line], [x.before for x in literals], autojunk=False)
        pairs = [(in_line[a + i], literals[b + i]) for a, b, n in blocks.get_matching_blocks() for i in range(n)]
        matched += [SizeConstraint(use.provenance, x) for use, x in pairs if use.provenance and use.provenance.slots]
    return matched


def _literals(module: nn.Module, original: Program, small: Program) -> dict[ForwardLine, list[Literal]]:
    """Literals of all nodes by the line of the forward that produced the node."""
    rewritten = {node.name: node for node in small.graph.nodes}
    by_line: dict[ForwardLine, list[Literal]] = defaultdict(list)
    for node in original.graph.nodes:
        line = _forward_line(module, node)
        if line and node.op == "call_function" and node.name in rewritten:
            pairs = zip(_numbers(node), _numbers(rewritten[node.name]), strict=False)
            by_line[line] += [
                Literal(node.name, a, b) for a, b in pairs if type(a) in (int, float) and type(a) is type(b)
            ]
    return by_line


def _numbers(node: fx.Node) -> list[Any]:
    """Arguments of a node; for a dynamic size its value in the example, with which the module was traced too."""
    return [_hint(leaf.meta.get("val")) if isinstance(leaf, fx.Node) else leaf for leaf in _leaves(node)]


def _leaves(node: fx.Node) -> list[Any]:
    return pytree.tree_leaves((list(node.args), node.kwargs))


def _hint(val: Any) -> Any:
    return val.node.hint if isinstance(val, torch.SymInt) else val


def _forward_line(module: nn.Module, node: fx.Node) -> ForwardLine | None:
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    lines = _FORWARD.findall(str(node.meta.get("stack_trace") or ""))
    if not paths or not lines:
        return None
    return id(module.get_submodule(re.sub(r"@\d+", "", paths[-1]))), lines[-1][0], int(lines[-1][1])


@dataclass(frozen=True)
class Conflict:
    """A slot for which literals demand different values."""

    slot: Slot
    literals: Sequence[Literal]


def solve(constraints: Sequence[SizeConstraint]) -> tuple[list[dict[Slot, float]], list[Conflict]]:
    """Assignments of slots that satisfy the constraints, the likeliest first, and the conflicts among them."""
    votes: dict[Slot, Counter[float]] = defaultdict(Counter)
    sources: dict[Slot, list[Literal]] = defaultdict(list)
    for constraint in constraints:
        if len(constraint.provenance.slots) == 1 and constraint.provenance.known:
            (slot,) = constraint.provenance.slots
            if (value := _satisfying_value(constraint, slot, {})) is not None:
                votes[slot][value] += 1
                sources[slot].append(constraint.literal)
    values = {slot: [v for v, _ in counts.most_common()] for slot, counts in votes.items()}
    values |= _derived(constraints, {slot: candidates[0] for slot, candidates in values.items()})
    conflicts = [Conflict(slot, sources[slot]) for slot, candidates in values.items() if len(candidates) > 1]
    return list(islice(_combined(values), TRIALS)), conflicts


def _satisfying_value(constraint: SizeConstraint, slot: Slot, others: Values) -> float | None:
    """The value of a slot that satisfies a constraint, with `others` fixed; the current one if it does."""

    def satisfies(value: float) -> bool:
        try:
            return constraint.provenance.value({**others, slot: value}) == constraint.literal.after
        except ZeroDivisionError:
            return False

    smaller = range(1, slot.value) if isinstance(slot.value, int) else ()
    return next((v for v in (slot.value, constraint.literal.after, *smaller) if satisfies(v)), None)


def _derived(constraints: Sequence[SizeConstraint], known: dict[Slot, float]) -> dict[Slot, list[float]]:
    """Values of the slots that occur only in expressions with other slots."""
    derived: dict[Slot, float] = {}
    for constraint in constraints:
        provenance = constraint.provenance
        current = {**{slot: slot.value for slot in provenance.slots}, **known, **derived}
        if not provenance.known or provenance.value(current) == constraint.literal.after:
            continue
        for slot in sorted(provenance.slots - known.keys() - derived.keys(), key=str):
            value = _satisfying_value(constraint, slot, current)
            if value is not None:
                derived[slot] = value
                break
    return {slot: [value] for slot, value in derived.items()}


def _combined(values: Mapping[Slot, Sequence[float]]) -> Iterator[dict[Slot, float]]:
    """Every combination of the values, with one choice for all slots of a kind."""
    kinds: dict[Any, dict[float, None]] = defaultdict(dict)
    for slot, options in values.items():
        if len(options) > 1:
            kinds[slot.kind] |= dict.fromkeys(options)
    for choice in product(*kinds.values()):
        chosen = dict(zip(kinds, choice, strict=True))
        yield {s: o[0] if chosen.get(s.kind) not in o else chosen[s.kind] for s, o in values.items()}
