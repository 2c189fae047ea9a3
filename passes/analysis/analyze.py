"""The pass that finds the groups of coupled axes and selects those that may be cut."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from graphprune.axes.groups import Dependencies, Group
from graphprune.ir.program import Dropped, Program, Rewritten
from graphprune.passes.analysis.requests import Requests
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.destination import Destination
from graphprune.planning.facts import Eligible
from graphprune.planning.group_names import GroupNames

log = logging.getLogger(__name__)


@PASSES.register("analyze")
@dataclass(frozen=True)
class Analyze(Pass):
    """Find the groups of coupled axes, and those of them whose cut the destination can hold.

    `destination`: ``free`` allows every cut that the axes allow; ``per-layer`` and ``stock`` allow those that the
    fields of the configuration can express, for each layer separately or for all layers alike. `protect` holds names
    of groups that must not be cut; a parameter or module stands for all its groups, ``fc.weight:0`` for those of one
    dimension. `exact_only` excludes groups whose cut differs from zeroing; with `experts`, whole experts of
    mixtures are included all the same, which a router then never chooses.

    `widths` are those that groups must have, as in ``neurons=1024,heads=6``, and `drop` the very indices that they
    lose, as in ``conv1=3,5``; for the names see `graphprune.planning.group_names`. Such groups need not be exact. After
    a cut both are done.
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
    experts: bool = False
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
        requests = self._requests(program, names, protected)
        destination = Destination.of(self.destination, program, dependencies)
        allowed = {group.name for group in dependencies.groups if self._allows(group)}
        names_of_candidates = (allowed - protected) | requests.widths.keys()
        candidates = [group for group in dependencies.groups if group.name in names_of_candidates]
        survey = list(destination.survey(candidates))
        refused = {kind: part.why for part in survey for kind in part.kinds if not part.widths}
        groups = tuple(group for group in candidates if group.kind not in refused)
        widths = {kind: part.widths for part in survey for kind in part.kinds if part.widths}
        families = tuple(part.kinds for part in survey if part.widths and len(part.kinds) > 1)
        eligible = Eligible(
            groups, destination, refused, widths, families, requested=requests.widths, removed=requests.removed
        )
        requests.require(eligible, dependencies)
        return program.with_facts(dependencies, eligible)

    def _allows(self, group: Group) -> bool:
        return group.exact or not self.exact_only or (self.experts and group.routed)

    def _requests(self, program: Program, names: GroupNames, protected: set[str]) -> Requests:
        """Requested widths and indices; none after a cut, which has done both."""
        if Rewritten in program.facts:
            return Requests({}, {})
        requests = Requests.of(names, self.widths, self.drop, protected)
        for name in requests.widths:
            group = names.dependencies.by_name[name]
            if not group.maskable and self.exact_only:
                why = names.dependencies.because.get(group.inexact_because)
                reason = ", ".join(filter(None, (why.why, why.place))) if why else group.inexact_because
                log.warning("%s is cut as requested, which changes the values that remain: %s", name, reason)
        return requests
