"""Groups that a module cannot follow keep zeros in the removed places: wider plans, and the weights for them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Dependencies, Group
from graphprune.ir.weights import DerivedWeights, KeepByName, narrow, widen
from graphprune.planning.plan import Rows
from graphprune.writeback.literal_matching import Conflict, Literal


@dataclass(frozen=True)
class Wider:
    """How wide the groups of a kind stay at least, and why."""

    width: int
    why: str = ""


#: Kinds of groups that stay wider.
Widths = Mapping[str, Wider]


def everything(dependencies: Dependencies, groups: Mapping[str, Rows]) -> dict[str, Wider]:
    """All kinds of groups that are cut as wide as they were, those whose cut removes most first."""
    found: dict[str, int] = {}
    saved: dict[str, int] = {}
    for group, rows in _pairs(dependencies, groups):
        found[group.kind] = max(group.size, found.get(group.kind, 0))
        saved[group.kind] = saved.get(group.kind, 0) + group.cost.parameters * (group.size - len(rows[0]))
    return {kind: Wider(found[kind]) for kind in sorted(found, key=lambda kind: -saved[kind])}


def bundles(widths: Widths) -> list[list[str]]:
    """Kinds of groups to narrow again: all in one module, all but one in one module, and each alone."""
    modules: dict[str, list[str]] = {}
    for kind in widths:
        modules.setdefault(kind.rpartition(":")[0].rpartition(".")[0].rpartition(".")[0], []).append(kind)
    several = [kinds for kinds in modules.values() if len(kinds) > 1]
    but_one = [[kind for kind in kinds if kind != one] for kinds in several for one in kinds if len(kinds) > 2]
    return [*several, *but_one, *([kind] for kind in widths)]


def widened(dependencies: Dependencies, groups: Mapping[str, Rows], widths: Widths) -> dict[str, Rows]:
    """What is kept when groups of these kinds stay wider: their own indices and the first others."""
    found = {}
    for group, rows in _pairs(dependencies, groups):
        width = max(len(rows[0]), min(widths[group.kind].width if group.kind in widths else 0, group.size))
        if width < group.size:
            found[group.name] = tuple(_filled(row, group.size, width) for row in rows)
    return found


def _pairs(dependencies: Dependencies, groups: Mapping[str, Rows]) -> Iterator[tuple[Group, Rows]]:
    return ((dependencies.by_name[name], rows) for name, rows in groups.items())


def _filled(row: tuple[int, ...], size: int, width: int) -> tuple[int, ...]:
    others = [i for i in range(size) if i not in set(row)]
    return tuple(sorted([*row, *others[: width - len(row)]]))


@dataclass(frozen=True)
class Padded(DerivedWeights):
    """Narrow weights with zeros in the places that `wide` keeps and `keep` does not."""

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


def settled(
    conflicts: Iterable[Conflict], dependencies: Dependencies, groups: Mapping[str, Rows], now: Widths
) -> dict[str, Wider]:
    """`now`, widened until literals that come of one slot are equal again, as far as one step tells."""
    new = {group.prime: len(rows[0]) for group, rows in _pairs(dependencies, groups)}
    found = dict(now)
    for conflict in conflicts:
        widest = int(max(literal.after for literal in conflict.literals))
        why = f"its forward has one size, {conflict.slot}, for it and for what stays {widest} wide"
        for literal in conflict.literals:
            for kind, width in _behind(literal, widest, dependencies, new) if literal.after < widest else ():
                if kind not in found or found[kind].width < width:
                    found[kind] = Wider(width, why)
    return found


def _behind(
    literal: Literal, widest: int, dependencies: Dependencies, new: Mapping[Prime, int]
) -> Iterator[tuple[str, int]]:
    """The kinds of groups that made a literal narrower, and how wide they must be instead."""
    for axis in dependencies.axes_of(literal.node):
        cut = [p for p in primes(axis) if p in new]
        if axis.size == literal.before and cut:
            yield from ((dependencies.by_prime[p].kind, widest if p is axis else p.size) for p in cut)
