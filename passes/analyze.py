"""The pass that finds groups and says which of them may be cut."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import ClassVar

from graphprune import config_widths, hf, per_layer
from graphprune.dependencies import Dependencies, Group
from graphprune.errors import ExportError, PlanError
from graphprune.facts import Eligible
from graphprune.kept import width
from graphprune.passes.analysis import analyze
from graphprune.pipeline import PASSES, Pass
from graphprune.program import Program

DESTINATIONS = ("stock", "per-layer", "free")


@PASSES.register("analyze")
@dataclass(frozen=True)
class Analyze(Pass):
    """Find the groups, and which of them the destination can express.

    `destination`: ``free`` allows whatever the axes allow; ``per-layer`` and ``stock`` what the fields of the
    configuration can say, each layer for itself or all alike. `protect` holds globs of parameters or groups to
    leave alone. `exact_only` leaves out groups whose cut is not the same as zeroing.
    """

    name: ClassVar[str] = "analyze"
    makes: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    destination: str = "free"
    protect: tuple[str, ...] = ()
    exact_only: bool = True

    def run(self, program: Program) -> Program:
        """The program with its dependencies and eligible groups.

        Raises:
            PlanError: if the destination is unknown, or needs a configuration that the program does not have.
        """
        if self.destination not in DESTINATIONS:
            raise PlanError(f"no destination {self.destination!r}; choose one of {', '.join(DESTINATIONS)}")
        dependencies = program.facts.get(Dependencies) or analyze(program)
        open_ones = [g for g in dependencies.groups if (g.exact or not self.exact_only) and not self._protected(g)]
        refused = dict(self._refused(program, dependencies, open_ones))
        groups = tuple(g for g in open_ones if g.kind not in refused)
        return program.with_facts(dependencies, Eligible(groups, self.destination, refused))

    def _protected(self, group: Group) -> bool:
        names = [group.name, *(place.parameter for place in group.places)]
        return any(fnmatch(name, glob) for name in names for glob in self.protect)

    def _refused(self, program: Program, dependencies: Dependencies, groups: list[Group]) -> Iterator[tuple[str, str]]:
        """Kinds of groups that the destination cannot express, and why."""
        if self.destination == "free":
            return
        if program.source is None or program.source.kind != "huggingface":
            raise PlanError(
                f"destination {self.destination} needs a Hugging Face folder, with its configuration; use free"
            )
        for kind in dict.fromkeys(group.kind for group in groups):
            alike = [group for group in groups if group.kind == kind]
            if why := self._why_not(program, dependencies, alike):
                yield kind, why

    def _why_not(self, program: Program, dependencies: Dependencies, alike: list[Group]) -> str | None:
        """Why no configuration can say a smaller width of these groups; None if one can."""
        assert program.source is not None
        settings, before = hf.config(program.source.path), program.shapes()
        narrow = alike if self.destination == "stock" else alike[:1]
        why = None
        for trial in dict.fromkeys((narrow[0].size // 2, narrow[0].size - 1)):
            after = _shapes(dependencies, before, narrow, trial)
            why = _express(self.destination, settings, before, after)
            if why is None:
                return None
        return why


def _express(
    destination: str, settings: object, before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]
) -> str | None:
    if destination == "stock":
        return config_widths.expressible(settings, before, after)  # type: ignore[arg-type]
    try:
        per_layer.fit_layers(settings, after)  # type: ignore[arg-type]
    except ExportError as fault:
        return str(fault)
    return None


def _shapes(
    dependencies: Dependencies, before: dict[str, tuple[int, ...]], groups: list[Group], trial: int
) -> dict[str, tuple[int, ...]]:
    """All shapes when these groups have the trial width."""
    widths = {group.prime: trial for group in groups}
    touched = {place.parameter for group in groups for place in group.places}
    new = {name: tuple(width(axis, widths) for axis in dependencies.tensors[name]) for name in touched}
    return {**before, **new}
