"""Destinations: where a pruned model must run, and which widths it can have."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from graphprune.axes.algebra import Product, primes, resolve
from graphprune.axes.groups import Dependencies, Group, Place
from graphprune.axes.index_sets import width
from graphprune.errors import ExportError, PlanError, choices
from graphprune.huggingface import config_biases, config_widths, model_folder, per_layer, traced_model
from graphprune.huggingface.layer_removal import shorten_config
from graphprune.huggingface.meta_models import Shapes, flat, head_sizes
from graphprune.ir.program import Program, Traced

NAMES = ("stock", "per-layer", "free")
FEW = 64  # up to this size, every width is tried


@dataclass(frozen=True)
class Survey:
    """Widths that `kinds` of groups may have, all alike, and the reason why they may have no others."""

    kinds: tuple[str, ...]
    widths: Collection[int]
    why: str


@dataclass(frozen=True)
class Destination:
    """``free`` takes every width that the axes allow; ``per-layer`` and ``stock`` those that the fields of the Hugging
    Face configuration `settings` can express, for each layer or for all layers alike."""

    name: str
    settings: Any
    dependencies: Dependencies
    shapes: Mapping[str, tuple[int, ...]]
    prefix: str = ""

    @staticmethod
    def require(name: str) -> None:
        """Refuse an unknown name.

        Raises:
            PlanError: if there is no such destination.
        """
        if name not in NAMES:
            raise PlanError(f"no destination {name!r}; {choices(name, NAMES)}")

    @classmethod
    def of(cls, name: str, program: Program, dependencies: Dependencies) -> "Destination":
        """The destination of this name for a program.

        Raises:
            PlanError: if the name is unknown, or the destination needs a configuration and the program has none.
        """
        cls.require(name)
        if name == "free":
            return cls(name, None, dependencies, {})
        if program.traced is not None:
            return cls(
                name, _of_traced(name, program, program.traced), dependencies, program.shapes(), program.traced.prefix
            )
        if program.source is None or program.source.kind != "huggingface":
            raise PlanError(
                f"destination {name} needs a Hugging Face folder, or a module that is or holds one model of "
                "transformers, with its configuration; use free"
            )
        return cls(name, model_folder.settings(program.source), dependencies, program.shapes())

    @property
    def uniform(self) -> bool:
        """Whether groups of one kind must have equal widths."""
        return self.name == "stock"

    def fault(self, widths: Mapping[str, int]) -> str | None:
        """The reason why groups cannot have these widths together; None if they can."""
        if self.name == "free":
            return None
        faults = (fault for name in widths for fault in (self._head_fault(name), self._router_fault(name)))
        if fault := next(filter(None, faults), None):
            return fault
        after = self._own(self._narrowed(widths))
        if self.name == "stock":
            return config_widths.expressible(self.settings, self._own(self.shapes), after)
        try:
            per_layer.fit_layers(self.settings, after)
        except ExportError as fault:
            return str(fault)
        return None

    def _head_fault(self, name: str) -> str | None:
        """The reason why a group inside of heads cannot be narrower; None if it can.

        The scale of attention follows from the size of its heads, so a class holds no others. The shapes alone do not
        show it: 4 heads of 6 are as wide as 3 heads of 8.
        """
        group = self.dependencies.by_name[name]
        inside = [place.parameter.removeprefix(self.prefix) for place in group.places if _is_inner(place, group)]
        fixed = [module for module, size in self._head_sizes.items() if size == group.size] if inside else []
        holders = [parameter for parameter in inside for module in fixed if parameter.startswith(f"{module}.")]
        return f"the heads of {holders[0]} must have {group.size} dimensions; use destination free" if holders else None

    def _router_fault(self, name: str) -> str | None:
        """The reason why there cannot be fewer groups of experts; None if there can.

        A class divides the experts by a number of its configuration, which shapes do not show: 6 experts are 3 groups
        of 2, or 2 groups of 3.
        """
        group = self.dependencies.by_name[name]
        if group.label != "expert groups":
            return None
        return (
            f"the router must have {group.size} groups of experts, each of which can be smaller; use destination free"
        )

    @cached_property
    def _head_sizes(self) -> Mapping[str, int]:
        """Sizes of attention heads by module; every width that is tried reads them."""
        return head_sizes(flat(self.settings))

    def bias_fault(self, name: str) -> str | None:
        """The reason why there can be no new bias of this name; None if there can."""
        try:
            self.biases([name])
        except ExportError as fault:
            return str(fault)
        return None

    def biases(self, names: Collection[str]) -> set[str]:
        """New parameters of these names, and those that come with them because one field sets several layers.

        Raises:
            ExportError: if the destination can have no such parameters.
        """
        if self.name == "free":
            return set(names)
        own = [name.removeprefix(self.prefix) for name in names if name.startswith(self.prefix)]
        before = config_biases.with_parameters(flat(self.settings), ())
        after = config_biases.with_parameters(before, own)
        added = config_biases.parameters(after) - config_biases.parameters(before)
        return {f"{self.prefix}{name}" for name in added}

    def fewer(self, entries: Sequence[str]) -> str | None:
        """The reason why the model cannot lack these entries of its lists of modules; None if it can."""
        if self.name == "free":
            return None
        if outside := [entry for entry in entries if not entry.startswith(self.prefix)]:
            return f"{outside[0]} is no part of the model of transformers"
        try:
            shorten_config(self.settings, [entry.removeprefix(self.prefix) for entry in entries])
        except ExportError as fault:
            return str(fault)
        return None

    def _own(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Shapes under the names of the model of transformers, which may be a part of the traced module."""
        return {n.removeprefix(self.prefix): shape for n, shape in shapes.items() if n.startswith(self.prefix)}

    def survey(self, groups: Sequence[Group]) -> Iterator[Survey]:
        """The widths that each restricted kind of groups may have, kinds that share a field together."""
        kinds = {} if self.name == "free" else _by_kind(groups)
        while kinds:
            kind, (first, *_) = next(iter(kinds.items()))
            family, faults = self._family(kind, kinds)
            alike = [group for member in family for group in kinds.pop(member)]
            if all(faults):
                yield Survey(family, (), str(faults[0]))
            elif first.size <= FEW or any(faults) or len(family) > 1:
                few, step = first.size <= FEW, first.size // 16
                every = range(1, first.size) if few else range(step, first.size, step)
                yield Survey(family, {w for w in every if self._fault_at(alike, w) is None}, "")

    def refusal(self, alike: Sequence[Group]) -> str | None:
        """The reason why groups of one kind cannot be narrower; None if they can have some other width."""
        kind, kinds = alike[0].kind, _by_kind(self.dependencies.groups) | _by_kind(alike)
        faults = self._family(kind, kinds)[1] if self.name != "free" else [None]
        return str(faults[0]) if all(faults) else None

    def _family(self, kind: str, kinds: Mapping[str, Sequence[Group]]) -> tuple[tuple[str, ...], list[str | None]]:
        """A kind with those that must be cut together with it, and the reasons against the widths that were tried."""
        faults = self._probes(kinds[kind])
        if not (self.uniform and all(faults)):
            return (kind,), faults
        for family in self._linked(kind, kinds):
            joint = self._probes([group for member in family for group in kinds[member]])
            if not all(joint):
                return family, joint
        return (kind,), faults

    def _linked(self, kind: str, kinds: Mapping[str, Sequence[Group]]) -> Iterator[tuple[str, ...]]:
        """Kinds whose joint cut gives the shapes of a model that differs in few fields, one of which sets this kind."""
        width = kinds[kind][0].size // 2
        halved = self._own(self._halved([kind], kinds))
        shapes = config_widths.alternatives(self.settings, self._own(self.shapes), halved)
        families = (self._cover(kind, kinds, model) for model in shapes) if width else iter(())
        yield from (family for family in families if len(family) > 1)

    def _cover(self, kind: str, kinds: Mapping[str, Sequence[Group]], model: Shapes) -> tuple[str, ...]:
        """The kinds that must be halved to reach the shapes of a model; none if that is not possible."""

        def missing(family: Sequence[str]) -> set[tuple[str, int]]:
            halved = self._own(self._halved(family, kinds))
            after = {name: shape for name, shape in halved.items() if name in model}
            pairs = ((name, enumerate(zip(shape, model[name], strict=True))) for name, shape in after.items())
            return {(name, dim) for name, sizes in pairs for dim, (own, target) in sizes if own != target}

        size, role = kinds[kind][0].size, _role(kind)
        others = [k for k, groups in kinds.items() if k != kind and groups[0].size == size]
        family: tuple[str, ...] = (kind,)
        wrong = missing(family)
        while wrong:
            trials = [(other, missing((*family, other))) for other in others if other not in family]
            better = [(other, rest) for other, rest in trials if rest < wrong]
            if not better:
                return ()
            best, wrong = min(better, key=lambda trial: (_role(trial[0]) != role, len(trial[1])))
            family = (*family, best)
        return family

    def _halved(self, family: Sequence[str], kinds: Mapping[str, Sequence[Group]]) -> dict[str, tuple[int, ...]]:
        return self._narrowed({group.name: group.size // 2 for member in family for group in kinds[member]})

    def _probes(self, alike: Sequence[Group]) -> list[str | None]:
        return [self._fault_at(alike, trial) for trial in {alike[0].size // 2, alike[0].size - 1}]

    def _fault_at(self, alike: Sequence[Group], width: int) -> str | None:
        """The reason why groups of one kind cannot have a width; per layer, the first group stands for all."""
        return self.fault({group.name: width for group in (alike if self.uniform else alike[:1])})

    def _narrowed(self, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """All shapes at these widths of groups."""
        groups = [self.dependencies.by_name[name] for name in widths]
        by_prime = {group.prime: widths[group.name] for group in groups}
        touched = {place.parameter for group in groups for place in group.places}
        tensors = self.dependencies.tensors
        new = {name: tuple(width(axis, by_prime) for axis in tensors[name]) for name in touched}
        return {**self.shapes, **new}


def _is_inner(place: Place, group: Group) -> bool:
    """Whether every index of an outer axis holds all indices of the group."""
    axis = resolve(place.axis)
    return isinstance(axis, Product) and any(group.prime in primes(part) for part in axis.parts[1:])


def _of_traced(name: str, program: Program, traced: Traced) -> Any:
    """The configuration of the model of transformers in a traced module.

    Raises:
        PlanError: if the model has other parameters than its class.
    """
    if parameter := traced_model.foreign(traced, program):
        raise PlanError(
            f"destination {name} holds models as their class builds them, and {traced.prefix}{parameter} is no "
            "parameter of the class; merge adapters before the trace, or use destination free"
        )
    return traced_model.settings(traced)


def _by_kind(groups: Sequence[Group]) -> dict[str, list[Group]]:
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        kinds.setdefault(group.kind, []).append(group)
    return kinds


def _role(kind: str) -> str:
    """The position of a kind in its parameters, which is equal for counterparts such as heads of two attentions."""
    return kind.rpartition(":")[2]
