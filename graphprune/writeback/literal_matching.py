"""Which values the numbers of a module must have, from the literals of its rewritten graph."""

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
from graphprune.writeback.size_tracing import Made, Place, Use, Values

TRIALS = 32
_FORWARD = re.compile(r'File "(.*)", line (\d+), in forward')


@dataclass(frozen=True)
class Literal:
    """A number in the arguments of a node, before and after the cut."""

    node: str
    before: float
    after: float


@dataclass(frozen=True)
class Wish:
    """What a number that was computed from slots must be after the cut, by a literal."""

    made: Made
    literal: Literal


def wishes(module: nn.Module, uses: Iterable[Use], original: Program, small: Program) -> list[Wish]:
    """The numbers of a module's forward, matched with the literals of the same line, in order."""
    seen: dict[Place, list[Use]] = defaultdict(list)
    for use in uses:
        seen[use.place].append(use)
    found = []
    for place, literals in _literals(module, original, small).items():
        here = seen[place]
        blocks = SequenceMatcher(None, [u.value for u in here], [x.before for x in literals], autojunk=False)
        pairs = [(here[a + i], literals[b + i]) for a, b, n in blocks.get_matching_blocks() for i in range(n)]
        found += [Wish(use.made, literal) for use, literal in pairs if use.made and use.made.slots]
    return found


def _literals(module: nn.Module, original: Program, small: Program) -> dict[Place, list[Literal]]:
    """The numbers of all nodes by the line of the forward that made them."""
    new = {node.name: node for node in small.graph.nodes}
    found: dict[Place, list[Literal]] = defaultdict(list)
    for node in original.graph.nodes:
        place = _place(module, node)
        if place and node.op == "call_function" and node.name in new:
            pairs = zip(_numbers(node), _numbers(new[node.name]), strict=False)
            found[place] += [
                Literal(node.name, a, b) for a, b in pairs if type(a) in (int, float) and type(a) is type(b)
            ]
    return found


def _numbers(node: fx.Node) -> list[Any]:
    """The arguments of a node; for a dynamic size its value in the example, in which the module was watched, too."""
    return [_hint(leaf.meta.get("val")) if isinstance(leaf, fx.Node) else leaf for leaf in _leaves(node)]


def _leaves(node: fx.Node) -> list[Any]:
    return pytree.tree_leaves((list(node.args), node.kwargs))


def _hint(val: Any) -> Any:
    return val.node.hint if isinstance(val, torch.SymInt) else val


def _place(module: nn.Module, node: fx.Node) -> Place | None:
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    lines = _FORWARD.findall(str(node.meta.get("stack_trace") or ""))
    if not paths or not lines:
        return None
    return id(module.get_submodule(re.sub(r"@\d+", "", paths[-1]))), lines[-1][0], int(lines[-1][1])


@dataclass(frozen=True)
class Conflict:
    """A slot for which literals wish different values."""

    slot: Slot
    literals: Sequence[Literal]


def solve(found: Sequence[Wish]) -> tuple[list[dict[Slot, float]], list[Conflict]]:
    """Assignments that grant the wishes, the likeliest first, and where they contradict each other."""
    votes: dict[Slot, Counter[float]] = defaultdict(Counter)
    behind: dict[Slot, list[Literal]] = defaultdict(list)
    for wish in found:
        if len(wish.made.slots) == 1 and wish.made.known:
            (slot,) = wish.made.slots
            if (value := _solved(wish, slot, {})) is not None:
                votes[slot][value] += 1
                behind[slot].append(wish.literal)
    values = {slot: [v for v, _ in counts.most_common()] for slot, counts in votes.items()}
    values |= _derived(found, {slot: options[0] for slot, options in values.items()})
    conflicts = [Conflict(slot, behind[slot]) for slot, options in values.items() if len(options) > 1]
    return list(islice(_combined(values), TRIALS)), conflicts


def _solved(wish: Wish, slot: Slot, others: Values) -> float | None:
    """The value of a slot that grants a wish, all else given; the old one if it does."""

    def grants(value: float) -> bool:
        try:
            return wish.made.value({**others, slot: value}) == wish.literal.after
        except ZeroDivisionError:
            return False

    smaller = range(1, slot.value) if isinstance(slot.value, int) else ()
    return next((v for v in (slot.value, wish.literal.after, *smaller) if grants(v)), None)


def _derived(found: Sequence[Wish], known: dict[Slot, float]) -> dict[Slot, list[float]]:
    """Values of the slots that only stand in expressions together with others."""
    new: dict[Slot, float] = {}
    for wish in found:
        if not wish.made.known or wish.made.value({**_old(wish.made.slots), **known, **new}) == wish.literal.after:
            continue
        for slot in sorted(wish.made.slots - known.keys() - new.keys(), key=str):
            value = _solved(wish, slot, {**_old(wish.made.slots), **known, **new})
            if value is not None:
                new[slot] = value
                break
    return {slot: [value] for slot, value in new.items()}


def _old(found: Iterable[Slot]) -> dict[Slot, float]:
    return {slot: slot.value for slot in found}


def _combined(values: Mapping[Slot, Sequence[float]]) -> Iterator[dict[Slot, float]]:
    """Every choice among the values, alike for slots of one kind."""
    kinds: dict[Any, dict[float, None]] = defaultdict(dict)
    for slot, options in values.items():
        if len(options) > 1:
            kinds[slot.kind] |= dict.fromkeys(options)
    for choice in product(*kinds.values()):
        chosen = dict(zip(kinds, choice, strict=True))
        yield {s: o[0] if chosen.get(s.kind) not in o else chosen[s.kind] for s, o in values.items()}
