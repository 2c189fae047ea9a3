"""Groups by name: by the kind of their indices, a group, a parameter, one of its dimensions, or a module.

The name of a parameter or a layer stands for the output of the layer, that of a norm or a bias for what it carries.
The name of a module that holds layers, also written ``layer3.*``, stands for the groups that only layers in it produce,
thus not for a residual stream through the module; where there are none, for those that some layer in it produces.
``fc.weight:1`` is a dimension of a parameter, and ``layers.3.*:neurons`` are the groups of one kind in what a name
stands for. Names may be globs. They are those of the whole model, also after blocks were dropped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from graphprune.axes.groups import Dependencies, Group, Place
from graphprune.axes.name_globs import hint, matching
from graphprune.errors import PlanError
from graphprune.huggingface.list_entries import renumbered
from graphprune.ir.program import Dropped, Program

MOST = 3  # reasons or labels in a message


@dataclass(frozen=True)
class GroupNames:
    """Names of the groups of a program."""

    program: Program
    dependencies: Dependencies

    def first_matches(self, keys: Sequence[str], option: str, one_kind: bool = False) -> dict[str, str]:
        """First of the keys that matches each group, by the name of the group; groups without one are omitted.

        Raises:
            PlanError: if a key matches no group, only groups that keys before it match, or groups of several kinds
                though `one_kind` is required.
        """
        find = self._of_one_kind if one_kind else self.matching
        matches = {key: [group.name for group in find(key, option)] for key in keys}
        first = {name: key for key in reversed(keys) for name in matches[key]}
        if hidden := next((key for key in keys if key not in first.values()), None):
            before = first[matches[hidden][0]]
            raise PlanError(
                f"{option} {hidden!r} has no effect, since {before!r} comes first and matches the same groups; put "
                f"{hidden!r} before it"
            )
        return first

    def matching(self, key: str, option: str) -> list[Group]:
        """Groups of this name, at least one.

        Raises:
            PlanError: if nothing has this name, or what has it cannot be cut.
        """
        if groups := self.groups(key):
            return groups
        raise PlanError(f"{option} {key!r} {self._why_none(self._divided(key)[0])}")

    def groups(self, key: str) -> list[Group]:
        """Groups of this name."""
        name, label = self._divided(key)
        if ":" in name or _plain(name) in self._labels:
            return self._all_of(name, label)
        ways: tuple[Callable[[Group], bool], ...] = (
            lambda group: self._is_output(name, group),
            lambda group: any(self._is_in(name, place) for place in _producing(group)),
            lambda group: any(self._is_in(name, place) for place in group.places if "carried" in place.role),
        )
        return next(filter(None, (self._where(label, way) for way in ways)), [])

    def protected(self, keys: Sequence[str]) -> set[str]:
        """Names of all groups that have one of these names or a place in what has it; a parameter may have no group.

        Raises:
            PlanError: if a key is no name.
        """
        chosen: set[str] = set()
        for key in keys:
            name, label = self._divided(key)
            groups = self._all_of(name, label)
            if not groups and not matching(name.partition(":")[0], self._whole_names):
                raise PlanError(f"protect {key!r} {self._why_none(name)}")
            chosen.update(group.name for group in groups)
        return chosen

    def _all_of(self, name: str, label: str) -> list[Group]:
        """Groups of this kind, with this name, or with a place in a parameter or a module of this name."""
        if _plain(name) in self._labels:
            return self._where(_plain(name), lambda group: True)
        if ":" in name:
            return self._where(label, lambda group: bool(matching(name, self._dimensions(group))))
        return self._where(label, lambda group: any(self._is_in(name, place) for place in group.places))

    def _where(self, label: str, condition: Callable[[Group], bool]) -> list[Group]:
        groups = (group for group in self.dependencies.groups if not label or _plain(group.label) == label)
        return list(filter(condition, groups))

    def _is_output(self, glob: str, group: Group) -> bool:
        """Whether a layer of this name produces the group, or only layers in modules of this name do."""
        places = _producing(group)
        return any(self._is_layer(glob, place) for place in places) or all(self._is_in(glob, one) for one in places)

    def _is_layer(self, glob: str, place: Place) -> bool:
        """Whether a parameter, or the layer that owns it, has a name."""
        names = (path for name in self._names(place) for path in (name, name.rpartition(".")[0]))
        return not glob.endswith(".*") and bool(matching(glob, names))

    def _is_in(self, glob: str, place: Place) -> bool:
        """Whether a parameter, or a module around it, has a name."""
        paths = [path for name in self._names(place) for path in _paths(name)]
        return bool(matching(glob, paths) or matching(glob.removesuffix(".*"), paths))

    def _names(self, place: Place) -> Sequence[str]:
        return self._parameters.get(place.parameter, (place.parameter,))

    def _dimensions(self, group: Group) -> Iterator[str]:
        """Names of a group and of its dimensions."""
        yield self.original(group)
        yield from (f"{name}:{place.dim}" for place in group.places for name in self._names(place))

    def _divided(self, key: str) -> tuple[str, str]:
        """Name without the kind of groups at its end, and that kind; empty if it has none."""
        base, _, end = key.rpartition(":")
        return (base, _plain(end)) if base and _plain(end) in self._labels else (key, "")

    def _of_one_kind(self, key: str, option: str) -> list[Group]:
        """Groups of this name, all of one kind: that of the last word, as in ``mlp.experts``, where there are others.

        Raises:
            PlanError: if there are several kinds, none of which is named.
        """
        last = _plain(key.rpartition(".")[2])
        if last in self._labels and (groups := self._all_of(key, last)):
            return groups
        groups = self.matching(key, option)
        labels = list(dict.fromkeys(group.label for group in groups))
        if len(labels) > 1:
            raise PlanError(
                f"{option} {key!r} names {', '.join(labels[:-1])} and {labels[-1]}; name one kind, as in "
                f"'{key}:{labels[0]}'"
            )
        return groups

    def original(self, group: Group) -> str:
        """Name that the group has in the whole model."""
        path, _, place = group.name.rpartition(":")
        return f"{self._parameters.get(path, (path,))[0]}:{place}"

    @cached_property
    def _labels(self) -> set[str]:
        return {_plain(group.label) for group in self.dependencies.groups}

    @cached_property
    def _parameters(self) -> Mapping[str, Sequence[str]]:
        """Names in the whole model of every parameter and buffer that remains."""
        dropped = self.program.facts.get(Dropped)
        whole = dropped.original if dropped else self.program
        entries = [block for block in dropped.blocks if ":" not in block] if dropped else []
        names: dict[str, list[str]] = {}
        for name in (*whole.shapes(), *whole.ties):
            if (new := renumbered(name, entries)) is not None:
                names.setdefault(self.program.name(new), []).append(name)
        return names

    @cached_property
    def _whole_names(self) -> list[str]:
        """Names of everything in the whole model, by which hints are made."""
        dropped = self.program.facts.get(Dropped)
        whole = dropped.original if dropped else self.program
        parameters = [*whole.shapes(), *whole.ties]
        modules = (path for name in parameters for path in _paths(name))
        return list(dict.fromkeys((*(group.label for group in self.dependencies.groups), *parameters, *modules)))

    def _is_dropped(self, key: str) -> bool:
        """Whether a name only stands for what is in dropped blocks."""
        remaining = [path for names in self._parameters.values() for name in names for path in _paths(name)]
        return not matching(key, remaining) and bool(matching(key, self._whole_names))

    def _why_none(self, key: str) -> str:
        """Why no group has a name, for a message."""
        if self._is_dropped(key):
            return "names only what is in dropped blocks"
        parameter, _, dim = key.rpartition(":")
        glob, only = (parameter, int(dim)) if dim.isdigit() else (key, None)
        stored = [new for new, names in self._parameters.items() if any(matching(glob, _paths(name)) for name in names)]
        if not stored:
            return f"matches no parameter, module, group or kind of groups; {hint(key, self._whole_names)}"
        reasons = (
            f"{name}, dimension {pinned.dim}: {pinned.reasons[0]}"
            for name in stored
            for pinned in self.dependencies.pinned
            if pinned.parameter == name and only in (None, pinned.dim) and pinned.reasons
        )
        known = list(dict.fromkeys(reasons))[:MOST]
        return "has no width that can be cut" + (f" ({'; '.join(known)})" if known else "")


def _producing(group: Group) -> list[Place]:
    """Places that produce a group; all of them where none does."""
    return [place for place in group.places if "produced" in place.role] or [*group.places]


def _paths(name: str) -> Iterator[str]:
    """Name of a parameter, and those of the modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _plain(label: str) -> str:
    """Label in lower case, with blanks in the place of hyphens and underscores."""
    return label.lower().replace("-", " ").replace("_", " ").strip()
