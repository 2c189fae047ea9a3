"""The pass that finds the groups of coupled axes and selects those that may be cut."""

from dataclasses import dataclass
from typing import ClassVar

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.name_globs import hint, matching
from graphprune.errors import PlanError
from graphprune.ir.program import Dropped, Program
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.destination import Destination
from graphprune.planning.facts import Eligible


@PASSES.register("analyze")
@dataclass(frozen=True)
class Analyze(Pass):
    """Find the groups of coupled axes, and those of them whose cut the destination can hold.

    `destination`: ``free`` allows every cut that the axes allow; ``per-layer`` and ``stock`` allow those that the
    fields of the configuration can express, for each layer separately or for all layers alike. `protect` holds globs of
    parameters or groups that must not be cut. `exact_only` excludes groups whose cut differs from zeroing.
    """

    name: ClassVar[str] = "analyze"
    needs: ClassVar[tuple[type, ...]] = (Dependencies,)
    reads: ClassVar[tuple[type, ...]] = (Dropped,)
    makes: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    memory_bounded: ClassVar[bool] = True
    surveys: ClassVar[bool] = True
    destination: str = "free"
    protect: tuple[str, ...] = ()
    exact_only: bool = True

    def check(self) -> None:
        """Check the name of the destination.

        Raises:
            PlanError: if there is no destination of that name.
        """
        Destination.require(self.destination)

    def run(self, program: Program) -> Program:
        """The program with its dependencies and eligible groups.

        Raises:
            PlanError: if the destination is unknown, or needs a configuration that the program does not have, or a
                glob of `protect` matches nothing.
        """
        dependencies = program.fact(Dependencies)
        self._require_matches(program, dependencies)
        destination = Destination.of(self.destination, program, dependencies)
        candidates = [
            g for g in dependencies.groups if (g.exact or not self.exact_only) and not self._protected(program, g)
        ]
        survey = list(destination.survey(candidates))
        refused = {kind: part.why for part in survey for kind in part.kinds if not part.widths}
        groups = tuple(group for group in candidates if group.kind not in refused)
        widths = {kind: part.widths for part in survey for kind in part.kinds if part.widths}
        families = tuple(part.kinds for part in survey if part.widths and len(part.kinds) > 1)
        return program.with_facts(dependencies, Eligible(groups, destination, refused, widths, families))

    def _require_matches(self, program: Program, dependencies: Dependencies) -> None:
        """Refuse globs that match no parameter and no group, neither now nor before blocks were dropped."""
        whole = program.fact(Dropped).original if Dropped in program.facts else program
        names = [*program.shapes(), *program.ties, *dependencies.by_name, *whole.shapes(), *whole.ties]
        for glob in self.protect:
            if not matching(glob, names):
                raise PlanError(f"protect {glob!r} matches no parameter and no group; {hint(glob, program.shapes())}")

    def _protected(self, program: Program, group: Group) -> bool:
        """Whether a glob matches the group, or any name of one of its parameters."""
        stored = {place.parameter for place in group.places}
        names = [group.name, *stored, *(alias for alias, name in program.ties.items() if name in stored)]
        return any(matching(glob, names) for glob in self.protect)
