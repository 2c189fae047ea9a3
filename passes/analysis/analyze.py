"""The pass that finds the groups of coupled axes and selects those that may be cut."""

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.axes.groups import Dependencies, Group
from graphprune.ir.program import Dropped, Program, Rewritten
from graphprune.passes.analysis.requests import Requests
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.destination import Destination
from graphprune.planning.facts import Eligible
from graphprune.planning.group_names import GroupNames


@PASSES.register("analyze")
@dataclass(frozen=True)
class Analyze(Pass):
    """Find the groups of coupled axes, and those of them whose cut the destination can hold.

    `destination`: ``free`` allows every cut that the axes allow; ``per-layer`` and ``stock`` allow those that the
    fields of the configuration can express, for each layer separately or for all layers alike. `protect` holds names
    of groups that must not be cut; a parameter or module stands for all its groups, ``fc.weight:0`` for those of one
    dimension. `exact_only` excludes groups whose cut differs from zeroing.

    `widths` are those that groups must have, as in ``neurons=1024,heads=6``, and `drop` the very indices that they
    lose, as in ``conv1=3,5``; for the names see `graphprune.planning.group_names`. After a cut both are done.
    """

    name: ClassVar[str] = "analyze"
    needs: ClassVar[tuple[type, ...]] = (Dependencies,)
    reads: ClassVar[tuple[type, ...]] = (Dropped, Rewritten)
    makes: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    memory_bounded: ClassVar[bool] = True
    surveys: ClassVar[bool] = True
    destination: str = "free"
    protect: tuple[str, ...] = ()
    exact_only: bool = True
    widths: str = ""
    drop: str = ""

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
        names = GroupNames(program, dependencies)
        protected = names.protected(self.protect)
        destination = Destination.of(self.destination, program, dependencies)
        candidates = [g for g in dependencies.groups if (g.exact or not self.exact_only) and g.name not in protected]
        survey = list(destination.survey(candidates))
        refused = {kind: part.why for part in survey for kind in part.kinds if not part.widths}
        groups = tuple(group for group in candidates if group.kind not in refused)
        widths = {kind: part.widths for part in survey for kind in part.kinds if part.widths}
        families = tuple(part.kinds for part in survey if part.widths and len(part.kinds) > 1)
        eligible = Eligible(groups, destination, refused, widths, families)
        return program.with_facts(dependencies, self._with_requests(eligible, program, names, protected))

    def _with_requests(self, eligible: Eligible, program: Program, names: GroupNames, protected: set[str]) -> Eligible:
        """Eligible groups with the requested widths and indices."""
        if Rewritten in program.facts or not (self.widths or self.drop):
            return eligible

        def refusal(group: Group) -> str | None:
            if self.exact_only and not group.exact:
                known = names.dependencies.because.get(group.inexact_because)
                why = " ".join(filter(None, (known.why, known.place))) if known else group.inexact_because
                return f"that would change the values that remain ({why}); allow it by exact_only=false (--inexact)"
            return eligible.refused.get(group.kind)

        requests = Requests.of(names, self.widths, self.drop, protected, refusal)
        requests.require(eligible.groups, eligible.destination, eligible.families)
        return replace(eligible, requested=requests.widths, removed=requests.removed)
