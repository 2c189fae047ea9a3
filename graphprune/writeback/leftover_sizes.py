"""Attributes that the run does not determine, and that still equal a width before the cut."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from graphprune.axes.groups import Dependencies
from graphprune.planning.plan import Rows
from graphprune.writeback.attribute_slots import Slot


def readings(
    module: nn.Module,
    slots: Sequence[Slot],
    determined: Mapping[Slot, float],
    dependencies: Dependencies,
    groups: Mapping[str, Rows],
) -> dict[Slot, list[int]]:
    """New widths of the groups in a layer whose former width an undetermined attribute of the layer equals."""
    paths: dict[int, str] = {}
    for path, layer in module.named_modules():
        paths.setdefault(id(layer), path)
    possible = {}
    for slot in slots:
        path = paths.get(id(slot.owner))
        if path is None or slot in determined or slot.current != slot.value:
            continue
        widths = sorted(set(_new_widths(path, slot.value, dependencies, groups)))
        if widths and widths != [slot.value]:
            possible[slot] = widths
    return possible


def _new_widths(path: str, old: float, dependencies: Dependencies, groups: Mapping[str, Rows]) -> Iterator[int]:
    """New widths of the groups of this width in a layer and the layers inside it."""
    prefix = f"{path}." if path else ""
    for group in dependencies.groups:
        if group.size == old and any(place.parameter.startswith(prefix) for place in group.places):
            yield len(groups[group.name][0]) if group.name in groups else group.size
