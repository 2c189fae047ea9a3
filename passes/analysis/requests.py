"""Widths and indices that a user requests by name, as those of groups."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import PlanError
from graphprune.planning.budget import Knob
from graphprune.planning.facts import Eligible
from graphprune.planning.group_names import GroupNames
from graphprune.support import named_values

SHOWN = 12  # possible widths in a message


@dataclass(frozen=True)
class Requests:
    """Requested `widths` of groups, and the indices to remove from those of them whose indices are given."""

    widths: Mapping[str, int]
    removed: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, names: GroupNames, widths: str, drop: str, protected: Collection[str]) -> "Requests":
        """Requests of two texts for groups that are not protected.

        Raises:
            PlanError: if a name is unknown or ambiguous, or a group cannot have the width or lacks an index.
        """
        chosen = _by_group(names, "widths", named_values.numbers(widths, int) if widths else {}, protected)
        lost = _by_group(names, "drop", named_values.numbers(drop, int, several=True) if drop else {}, protected)
        groups = names.dependencies.by_name
        for name in chosen.keys() & lost.keys():
            raise PlanError(
                f"widths {chosen[name][0]!r} and drop {lost[name][0]!r} both name group {name}; omit one of them"
            )
        removed = {name: _indices(groups[name], key, values) for name, (key, values) in lost.items()}
        exact = {name: _width(groups[name], f"widths {key!r}", value) for name, (key, value) in chosen.items()}
        for name, indices in removed.items():
            exact[name] = _width(groups[name], f"drop {lost[name][0]!r}", groups[name].size - len(indices))
        return cls(exact, removed)

    def require(self, eligible: Eligible, dependencies: Dependencies) -> None:
        """Refuse widths that a destination cannot hold.

        Raises:
            PlanError: if it cannot, or has one width for groups of which some have another one, or none is requested.
        """
        destination = eligible.destination
        family_of = {kind: family for family in eligible.families for kind in family}
        for name in self.widths:
            group = dependencies.by_name[name]
            if group.kind in eligible.refused:
                raise PlanError(
                    f"a width of {name} is requested, and destination {destination.name} cannot hold another one: "
                    f"{eligible.refused[group.kind]}"
                )
            if destination.uniform:
                self._require_alike(family_of.get(group.kind, (group.kind,)), eligible)
        cut = {name: width for name, width in self.widths.items() if width < dependencies.by_name[name].size}
        if cut and (fault := destination.fault(cut)):
            raise PlanError(f"destination {destination.name} cannot hold the requested widths: {fault}")

    def _require_alike(self, family: Sequence[str], eligible: Eligible) -> None:
        """Refuse several widths of groups that must have one."""
        alike = [group.name for group in eligible.groups if group.kind in family]
        widths = Counter(self.widths[one] for one in alike if one in self.widths)
        if widths.total() < len(alike) or len(widths) > 1:
            raise PlanError(
                f"destination {eligible.destination.name} has one width for the {len(alike)} groups "
                f"{' and '.join(family)}, and {', '.join(f'{w} of {n} of them' for w, n in widths.items())} is "
                "requested; request one for all, or use destination per-layer or free"
            )


def _by_group(
    names: GroupNames, option: str, values: Mapping[str, object], protected: Collection[str]
) -> dict[str, tuple[str, object]]:
    """Name and value that are requested for every group, without protected ones."""
    first = names.first_matches([*values], option, one_kind=True)
    for key in values:
        if {name for name, own in first.items() if own == key} <= {*protected}:
            raise PlanError(f"{option} {key!r} names only protected groups; omit one of the two")
    return {name: (key, values[key]) for name, key in first.items() if name not in protected}


def _width(group: Group, option: str, value: object) -> int:
    """Requested width, if the group can have it."""
    legal = Knob.of([group]).legal
    if value not in legal:
        raise PlanError(
            f"{option}: group {group.name} has {group.size} {group.label} and can retain {_possible(legal)}, "
            f"not {value}"
        )
    assert isinstance(value, int)
    return value


def _possible(legal: Sequence[int]) -> str:
    """Legal widths in words."""
    if len(legal) <= SHOWN:
        return f"{', '.join(map(str, legal[:-1]))} or {legal[-1]}".removeprefix(" or ")
    return f"{', '.join(map(str, legal[:3]))}, ..., {legal[-2]} or {legal[-1]}"


def _indices(group: Group, key: str, values: object) -> tuple[int, ...]:
    """Indices to remove, in order, if the group has them."""
    assert isinstance(values, tuple)
    wrong = [index for index in values if not 0 <= index < group.size]
    if wrong:
        raise PlanError(
            f"drop {key!r}: group {group.name} has the {group.label} 0 to {group.size - 1}, and no {wrong[0]}"
        )
    repeated = [index for index, times in Counter(values).items() if times > 1]
    if repeated:
        raise PlanError(f"drop {key!r} has the index {repeated[0]} twice; name each once")
    return tuple(sorted(values))
