"""Zero padding of groups whose cut a module cannot express: wider plans, and the padded weights."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Dependencies, Group
from graphprune.ir.weights import DerivedWeights, KeepByName, narrow, widen
from graphprune.planning.plan import Rows
from graphprune.writeback.sizes.literal_matching import Conflict, Literal


@dataclass(frozen=True)
class Wider:
    """Least width of the groups of a kind in the module, and the reason."""

    width: int
    why: str = ""


#: Padded kinds of groups, and their widths.
Widths = Mapping[str, Wider]


def full_widths(dependencies: Dependencies, groups: Mapping[str, Rows]) -> dict[str, Wider]:
    """Original widths of all kinds of groups that are cut, those whose cut removes most parameters first."""
    widths: dict[str, int] = {}
    savings: dict[str, int] = {}
    for group, rows in _pairs(dependencies, groups):
        widths[group.kind] = max(group.size, widths.get(group.kind, 0))
        savings[group.kind] = savings.get(group.kind, 0) + group.cost.parameters * (group.size - len(rows[0]))
    return {kind: Wider(widths[kind]) for kind in sorted(widths, key=lambda kind: -savings[kind])}


def narrowing_candidates(widths: Widths) -> list[list[str]]:
    """Sets of kinds to try without padding: all of one module, all but one of a module, and each alone."""
    modules: dict[str, list[str]] = {}
    for kind in widths:
        modules.setdefault(kind.rpartition(":")[0].rpartition(".")[0].rpartition(".")[0], []).append(kind)
    shared = [kinds for kinds in modules.values() if len(kinds) > 1]
    all_but_one = [[kind for kind in kinds if kind != one] for kinds in shared for one in kinds if len(kinds) > 2]
    return [*shared, *all_but_one, *([kind] for kind in widths)]


def padded_rows(dependencies: Dependencies, groups: Mapping[str, Rows], widths: Widths) -> dict[str, Rows]:
    """Retained indices of every group with padding to `widths`: its own, then the lowest removed ones."""
    padded = {}
    for group, rows in _pairs(dependencies, groups):
        width = max(len(rows[0]), min(widths[group.kind].width if group.kind in widths else 0, group.size))
        if width < group.size:
            padded[group.name] = tuple(_filled(row, group.size, width) for row in rows)
    return padded


def _pairs(dependencies: Dependencies, groups: Mapping[str, Rows]) -> Iterator[tuple[Group, Rows]]:
    return ((dependencies.by_name[name], rows) for name, rows in groups.items())


def _filled(row: tuple[int, ...], size: int, width: int) -> tuple[int, ...]:
    others = [i for i in range(size) if i not in set(row)]
    return tuple(sorted([*row, *others[: width - len(row)]]))


@dataclass(frozen=True)
class Padded(DerivedWeights):
    """Narrow weights with zeros at the indices that `wide` retains and `keep` does not."""

    keep: KeepByName
    wide: KeepByName
    shapes: Mapping[str, tuple[int, ...]]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        for dim, indices in sorted(self.keep.get(name, {}).items()):
            tensor = widen(tensor, dim, indices, self.shapes[name][dim])
        for dim, indices in sorted(self.wide.get(name, {}).items(), reverse=True):
            tensor = narrow(tensor, dim, indices)
        return tensor


def resolve_conflicts(
    conflicts: Iterable[Conflict], dependencies: Dependencies, groups: Mapping[str, Rows], current: Widths
) -> dict[str, Wider]:
    """Widths after one step of padding that makes literals computed from one slot equal again."""
    new = {group.prime: len(rows[0]) for group, rows in _pairs(dependencies, groups)}
    widths = dict(current)
    for conflict in conflicts:
        widest = int(max(literal.after for literal in conflict.literals))
        why = f"its forward uses one size, {conflict.slot}, for it and for an axis of width {widest}"
        for literal in conflict.literals:
            for kind, width in _responsible_kinds(literal, widest, dependencies, new) if literal.after < widest else ():
                if kind not in widths or widths[kind].width < width:
                    widths[kind] = Wider(width, why)
    return widths


def _responsible_kinds(
    literal: Literal, widest: int, dependencies: Dependencies, new: Mapping[Prime, int]
) -> Iterator[tuple[str, int]]:
    """Kinds of groups whose cut reduced a literal, with the widths that they need instead."""
    for axis in dependencies.axes_of(literal.node):
        cut = [p for p in primes(axis) if p in new]
        if axis.size == literal.before and cut:
            yield from ((dependencies.by_prime[p].kind, widest if p is axis else p.size) for p in cut)
