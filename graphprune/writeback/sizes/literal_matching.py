"""Values that the numbers of a module must have, from the literals of its rewritten graph."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain, groupby, islice, product
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from graphprune.ir.program import Program
from graphprune.writeback.attribute_slots import Slot
from graphprune.writeback.call_sites import ForwardLine
from graphprune.writeback.sizes.size_tracing import Use
from graphprune.writeback.sizes.traced_numbers import Provenance, Values

T = TypeVar("T")
TRIALS = 32
#: Functions of torch that pass their sizes on to one operator, or to several that take the same.
_FAMILIES = {
    "view": {"view", "reshape", "unflatten", "unsafe_view", "flatten", "view_as"},
    "split": {"split", "split_with_sizes", "unsafe_split", "tensor_split"},
    "slice": {"getitem", "slice", "select", "narrow"},
    "expand": {"expand", "broadcast_to", "expand_as"},
    "repeat": {"repeat", "tile"},
    "div": {"div", "truediv", "true_divide", "divide"},
    "mul": {"mul", "multiply"},
    "sub": {"sub", "subtract", "rsub"},
    "full": {"full", "new_full", "zeros", "new_zeros", "ones", "new_ones", "empty", "new_empty"},
}
_FORWARD = re.compile(r'File "(.*)", line (\d+), in forward')


@dataclass(frozen=True)
class Literal:
    """A number in the arguments of a node, an operator, before and after the cut.

    It is `dynamic` if it depends on sizes of inputs. One size of equal parts may become a tuple of different sizes.
    """

    node: str
    before: float
    after: Any
    function: str = ""
    dynamic: bool = False


@dataclass(frozen=True)
class SizeConstraint:
    """The value after the cut, given by a literal, of a number that is computed from slots."""

    provenance: Provenance
    literal: Literal


def matches(
    module: nn.Module, uses: Iterable[Use], original: Program, small: Program, *, by_function: bool = False
) -> list[tuple[Use, Literal]]:
    """The numbers that a run passes at each line, matched in order with the graph's literals of that line.

    Calls with the same numbers are matched first. `by_function` matches other numbers only where they are passed to the
    same function, or to one that does the same.
    """
    by_line: dict[ForwardLine, list[Use]] = defaultdict(list)
    for use in uses:
        by_line[use.line].append(use)
    pairs = []
    for line, literals in _literals(module, original, small).items():
        pairs += _aligned(by_line[line], literals, by_function)
    return pairs


def _aligned(uses: Sequence[Use], literals: Sequence[Literal], by_function: bool) -> list[tuple[Use, Literal]]:
    """Numbers and literals of a line: those of equal calls, and between these calls equal numbers in order."""
    calls = [list(group) for _, group in groupby(uses, key=lambda use: use.call)]
    nodes = [list(group) for _, group in groupby(literals, key=lambda literal: literal.node)]
    left = [(family(call[0].function), tuple(use.value for use in call)) for call in calls]
    right = [(family(node[0].function), tuple(literal.before for literal in node)) for node in nodes]
    pairs, start, first = list[tuple[Use, Literal]](), 0, 0
    for a, b, n in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        pairs += _in_order(_joined(calls[start:a]), _joined(nodes[first:b]), by_function)
        pairs += zip(_joined(calls[a : a + n]), _joined(nodes[b : b + n]), strict=True)
        start, first = a + n, b + n
    return pairs


def _joined(lists: Iterable[list[T]]) -> list[T]:
    return list(chain.from_iterable(lists))


def _in_order(uses: Sequence[Use], literals: Sequence[Literal], by_function: bool) -> list[tuple[Use, Literal]]:
    """Equal numbers in order."""
    left = [(use.value, family(use.function) if by_function else "") for use in uses]
    right = [(literal.before, family(literal.function) if by_function else "") for literal in literals]
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    return [(uses[a + i], literals[b + i]) for a, b, n in blocks for i in range(n)]


def family(function: str) -> str:
    """Name that functions which do the same have in common."""
    name = function.strip("_")
    if function.startswith(("__r", "__i")):
        name = name[1:]
    base = next((base for base, names in _FAMILIES.items() if name in names), name)
    return base


def size_constraints(pairs: Iterable[tuple[Use, Literal]]) -> list[SizeConstraint]:
    """The constraints on the numbers that are computed from slots."""
    return [
        SizeConstraint(use.provenance, literal)
        for use, literal in pairs
        if use.provenance and use.provenance.slots and not isinstance(literal.after, tuple)
    ]


def _literals(module: nn.Module, original: Program, small: Program) -> dict[ForwardLine, list[Literal]]:
    """Literals of all nodes by the line of the forward that produced the node."""
    rewritten = {node.name: node for node in small.graph.nodes}
    by_line: dict[ForwardLine, list[Literal]] = defaultdict(list)
    for node in original.graph.nodes:
        line = _forward_line(module, node)
        if line and node.op == "call_function" and node.name in rewritten:
            by_line[line] += [
                Literal(node.name, _number(a), _number(b), _operator(node), fx.Node in (type(a), type(b)))
                for a, b in _argument_pairs(node, rewritten[node.name])
                if type(_number(a)) in (int, float) and (type(_number(a)) is type(_number(b)) or type(b) is tuple)
            ]
    return by_line


def _operator(node: fx.Node) -> str:
    """Name of the operator of a node without namespace and overload."""
    return str(getattr(node.target, "_opname", getattr(node.target, "__name__", "")))


def _number(leaf: Any) -> Any:
    """An argument of a node; for a dynamic size its value in the example, with which the module was traced too."""
    return _hint(leaf.meta.get("val")) if isinstance(leaf, fx.Node) else leaf


def _argument_pairs(old: fx.Node, new: fx.Node) -> Iterator[tuple[Any, Any]]:
    """Arguments of a node before and after the cut; one size may become a tuple of sizes that differ."""
    before, after = [*old.args, *old.kwargs.values()], [*new.args, *new.kwargs.values()]
    for a, b in zip(before, after, strict=False):
        if isinstance(a, int) and isinstance(b, list | tuple):
            yield a, tuple(b)
        else:
            yield from zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=False)


def _hint(val: Any) -> Any:
    return val.node.hint if isinstance(val, torch.SymInt) else val


def _forward_line(module: nn.Module, node: fx.Node) -> ForwardLine | None:
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    if not paths:
        return None
    lines = _FORWARD.findall(str(node.meta.get("stack_trace") or ""))
    file, line = lines[-1] if lines else ("", 0)  # a forward may have another name, where an attribute replaces it
    try:
        return id(module.get_submodule(re.sub(r"@\d+", "", paths[-1]))), file, int(line)
    except AttributeError:  # a note of torch, or a layer that the forward creates
        return None


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
            return bool(constraint.provenance.value({**others, slot: value}) == constraint.literal.after)
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
