"""Adaptation of a module's code to narrow tensors: attributes that it compares, and arguments that it computes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from graphprune.axes.algebra import Prime
from graphprune.axes.groups import Dependencies
from graphprune.errors import WriteBackError
from graphprune.ir.program import Inputs
from graphprune.support.undo import Undo
from graphprune.writeback.attribute_slots import Slot
from graphprune.writeback.call_sites import ArgumentPath, CallSite
from graphprune.writeback.narrow_attention import convert
from graphprune.writeback.sizes.literal_matching import Literal
from graphprune.writeback.sizes.size_tracing import Replay, SizeTrace, Use, replay_numbers
from graphprune.writeback.sizes.traced_numbers import Provenance
from graphprune.writeback.specialized_classes import ArgumentEdit, specialized

ROUNDS = 8  # of comparisons that hide others
INFERRED = -1  # a size that torch computes from the others; the graph may have a number in its place


@dataclass
class Adaptation:
    """Adaptation of a module whose tensors are narrow and whose slots are set, as far as the graph determines them.

    The module runs as it ran before the cut, but with the graph's numbers where it passes others to torch, and with the
    former answers where it compares sizes. Attributes that no longer equal a size are set to it; the calls that passed
    other numbers are edited, in a subclass of the class of their layer. `methods` names the edited ones. Where weights
    are `scaled` to make up for other factors, these factors are not edited.
    """

    undo: Undo
    module: nn.Module
    slots: Sequence[Slot]
    trace: SizeTrace
    pairs: Sequence[tuple[Use, Literal]]
    inputs: Inputs
    dependencies: Dependencies
    widths: Mapping[Prime, int]
    scaled: bool = False
    methods: tuple[str, ...] = ()

    def apply(self) -> None:
        """Adapt the module.

        Raises:
            WriteBackError: if nothing can be adapted, or not everything.
        """
        converted = convert(self.undo, self.module, self.dependencies, self.widths)
        targets = {u: x.after for u, x in self.pairs if not x.dynamic and u.value != INFERRED}
        for _ in range(ROUNDS):
            replay = Replay(self.trace, targets)
            broken = replay_numbers(self.module, self.slots, replay, self.inputs).broken
            values = list(filter(None, (_value_for_equality(a, b) for a, b in broken)))
            if not values:
                break
            for slot, value in values:
                slot.put(self.undo, value)
        else:
            raise WriteBackError("it compares too many sizes")
        if not converted and not replay.differs and not any(slot.current != slot.value for slot in self.slots):
            raise WriteBackError("its code has no number to adapt")
        self._edit(replay, converted)

    def _edit(self, replay: Replay, converted: bool) -> None:
        """Let the calls that pass other numbers read them from attributes of their layers."""
        edits: dict[nn.Module, dict[tuple[CallSite, ArgumentPath], Any]] = {}
        for use in replay.differs:
            if isinstance(use.value, float) and self.scaled:
                continue
            if use.site is None:
                raise WriteBackError(f"a size is computed outside of the methods of its layers, at {use.line[1]}")
            demanded = replay.demands[use.site, use.path]
            if len(demanded) > 1:
                raise WriteBackError(f"line {use.site.span[1]} of {use.line[1]} passes one size for several axes")
            edits.setdefault(use.site.receiver, {})[use.site, use.path] = replay.targets[use]
        kinds = dict.fromkeys(["MultiheadAttention.forward"] if converted else [])
        names: dict[tuple[type, Any], str] = {}
        for layer, sizes in edits.items():
            kinds |= dict.fromkeys(f"{type(layer).__name__}.{site.method}" for site, _ in sizes)
            _adapt(self.undo, layer, sizes, names)
        self.methods = tuple(kinds)


def _adapt(
    undo: Undo,
    layer: nn.Module,
    sizes: Mapping[tuple[CallSite, ArgumentPath], Any],
    names: dict[tuple[type, Any], str],
) -> None:
    """Give a layer the attributes of these sizes, and the class that reads them."""
    edits = set()
    for (site, path), size in sizes.items():
        key = type(layer), (site.method, site.span, path)
        name = names.setdefault(key, _unused_name(layer, [*names.values()]))
        undo.set_item(vars(layer), name, size)
        edits.add(ArgumentEdit(site.method, site.span, site.function, site.bound, site.positional, path, name))
    undo.set_class(layer, specialized(type(layer), frozenset(edits)))


def _unused_name(layer: nn.Module, used: Sequence[str]) -> str:
    """A name that no attribute of the layer has."""
    return next(name for i in range(10**6) if (name := f"cut_size_{i}") not in used and not hasattr(layer, name))


def _value_for_equality(a: Provenance, b: Provenance) -> tuple[Slot, float] | None:
    """The value of a slot with which two numbers are equal, and the slot."""
    slots = {slot: slot.current for slot in a.slots | b.slots}
    for slot, old in slots.items():
        others = [side.value(slots) for side in (a, b)]
        for value in (*others, *(range(1, int(old)) if isinstance(old, int) else ())):
            try:
                if a.value({**slots, slot: value}) == b.value({**slots, slot: value}):
                    return slot, value
            except ZeroDivisionError:
                continue
    return None
