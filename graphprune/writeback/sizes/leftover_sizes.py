"""Attributes that the run does not determine, and that still equal a width before the cut."""

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from graphprune.axes.groups import Dependencies
from graphprune.planning.plan import Rows
from graphprune.writeback.attribute_slots import Slot

#: Words in names of numbers that are no widths of tensors that a layer computes.
_NO_WIDTH = {
    "factor", "stride", "strides", "kernel", "padding", "dilation", "downsample", "upsample", "pool", "patch", "image",
    "window", "layers", "blocks", "depth", "depths", "levels", "length", "len", "position", "positions", "steps",
    "iters", "iterations", "epochs", "rate", "seed", "version", "topk",
}  # fmt: skip


def readings(
    module: nn.Module,
    slots: Sequence[Slot],
    determined: Mapping[Slot, float],
    dependencies: Dependencies,
    groups: Mapping[str, Rows],
    shapes: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]],
) -> dict[Slot, list[int]]:
    """New widths of the groups and parameters in a layer whose former width an undetermined attribute equals.

    `shapes` are those of the parameters before and after the cut. Layers of torch are not among these, nor ours in
    their place.
    """
    paths: dict[int, str] = {}
    for path, layer in module.named_modules():
        paths.setdefault(id(layer), path)
    possible = {}
    for slot in slots:
        path = paths.get(id(slot.owner))
        if path is None or slot in determined or slot.current != slot.value or type(slot.value) is not int:
            continue
        if type(slot.owner).__module__.startswith(("torch.", "graphprune.")) or _NO_WIDTH & _words(slot.key):
            continue
        prefix = f"{path}." if path else ""
        pairs = (zip(old, shapes[1].get(n, old), strict=True) for n, old in shapes[0].items() if n.startswith(prefix))
        inside = {new for pair in pairs for old, new in pair if old == slot.value}
        widths = sorted(inside | set(_new_widths(prefix, slot.value, dependencies, groups)))
        if widths and widths != [slot.value]:
            possible[slot] = widths
    return possible


def _words(name: object) -> set[str]:
    """Words of a name such as ``downsample_factor`` or ``kernelSize``."""
    return {word.lower() for word in re.findall(r"[A-Za-z][a-z]*", str(name))}


def _new_widths(prefix: str, old: float, dependencies: Dependencies, groups: Mapping[str, Rows]) -> Iterator[int]:
    """New widths of the groups of this width in a layer and the layers inside it."""
    for group in dependencies.groups:
        if group.size == old and any(place.parameter.startswith(prefix) for place in group.places):
            yield len(groups[group.name][0]) if group.name in groups else group.size
