"""Destinations: where a pruned model must run, and which widths it can have."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.index_sets import width
from graphprune.errors import ExportError, PlanError, choices
from graphprune.huggingface import config_biases, config_widths, model_folder, per_layer
from graphprune.huggingface.meta_models import flat
from graphprune.ir.program import Program

NAMES = ("stock", "per-layer", "free")
FEW = 64  # up to this size, every width is tried


@dataclass(frozen=True)
class Destination:
    """``free`` takes every width that the axes allow; ``per-layer`` and ``stock`` those that the fields of the Hugging
    Face configuration `settings` can express, for each layer or for all layers alike."""

    name: str
    settings: Any
    dependencies: Dependencies
    shapes: Mapping[str, tuple[int, ...]]

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
        if program.source is None or program.source.kind != "huggingface":
            raise PlanError(f"destination {name} needs a Hugging Face folder, with its configuration; use free")
        return cls(name, model_folder.settings(program.source), dependencies, program.shapes())

    @property
    def uniform(self) -> bool:
        """Whether groups of one kind must have equal widths."""
        return self.name == "stock"

    def fault(self, widths: Mapping[str, int]) -> str | None:
        """The reason why groups cannot have these widths together; None if they can."""
        if self.name == "free":
            return None
        after = self._narrowed(widths)
        if self.name == "stock":
            return config_widths.expressible(self.settings, self.shapes, after)
        try:
            per_layer.fit_layers(self.settings, after)
        except ExportError as fault:
            return str(fault)
        return None

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
        before = config_biases.with_parameters(flat(self.settings), ())
        after = config_biases.with_parameters(before, names)
        return config_biases.parameters(after) - config_biases.parameters(before)

    def survey(self, groups: Sequence[Group]) -> Iterator[tuple[str, Collection[int], str]]:
        """For every restricted kind of groups: the widths that it may have, and the reason why not others."""
        for kind in dict.fromkeys(group.kind for group in groups if self.name != "free"):
            alike = [group for group in groups if group.kind == kind]
            probes, size = self._probes(alike), alike[0].size
            if all(probes):
                yield kind, (), str(probes[0])
            elif size <= FEW or any(probes):
                every = range(1, size) if size <= FEW else range(size // 16, size, size // 16)
                yield kind, {w for w in every if self._fault_at(alike, w) is None}, ""

    def refusal(self, alike: Sequence[Group]) -> str | None:
        """The reason why groups of one kind cannot be narrower; None if they can have some other width."""
        probes = self._probes(alike)
        return str(probes[0]) if all(probes) else None

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
