"""Cuts that a module can follow: a trial cut is written back, and kinds of groups that it pads are not to be cut."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
from torch import nn

from graphprune.axes.algebra import primes
from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import PlanError, WriteBackError, reason_of
from graphprune.execution.module_state import evaluation_mode
from graphprune.ir.program import Program
from graphprune.planning.budget import Knob
from graphprune.planning.facts import Eligible, Followable
from graphprune.planning.plan import make
from graphprune.writeback.narrowing import Cut, Narrowing
from graphprune.writeback.sizes.literal_matching import Conflict

VARIED = 5  # different widths of groups of one size in a trial cut
Ties = tuple[tuple[str, ...], ...]


def is_captured(program: Program) -> bool:
    """Whether the module of the program is in memory, and has the parameters of the program."""
    shapes = program.shapes()
    own = dict(program.captured.named_parameters()) if program.captured else {}
    return bool(own) and all(shapes.get(program.name(name), own[name].shape) == own[name].shape for name in own)


def followable(cut: Cut, program: Program, eligible: Eligible) -> Followable:
    """Cuts that the captured module of a program can follow without padding; it is unchanged afterwards.

    Raises:
        PlanError: if the program has no module in memory, or the module has changed since the capture.
    """
    if program.captured is None:
        raise PlanError(
            "the program has no module in memory that could follow a cut: capture one with graphprune.trace(module, "
            "...), or plan without follow"
        )
    if not is_captured(program):
        raise PlanError(
            f"{type(program.captured).__name__} has other parameters than when it was captured; capture it again"
        )
    return _Trials(cut, program, program.captured, eligible).run()


@dataclass(frozen=True)
class _Trials:
    """Trial cuts of a module to different widths, wherever nothing ties them."""

    cut: Cut
    program: Program
    module: nn.Module
    eligible: Eligible

    @property
    def dependencies(self) -> Dependencies:
        """Groups of the program."""
        return self.program.fact(Dependencies)

    def run(self) -> Followable:
        """Kinds of groups that are padded in every trial, and groups that must have one width."""
        kinds = frozenset(group.kind for group in self.eligible.groups)
        refused, tied = dict[str, str](), Ties()
        while groups := [group for group in self.eligible.groups if group.kind not in refused]:
            rows = dict(self._rows(groups, tied))
            if not rows:
                break
            with evaluation_mode(self.module):
                padded, ties = self._padded(rows, tied)
            if not padded and ties == tied:
                break
            refused, tied = {**refused, **padded}, ties
        return Followable(refused, tied, kinds)

    def _padded(self, rows: Mapping[str, tuple[tuple[int, ...]]], tied: Ties) -> tuple[dict[str, str], Ties]:
        """Kinds that a trial pads, with the reasons; or further ties, with which another trial may pad none."""
        small = self.cut(self.program, make(self.program, self.dependencies, rows))
        search = Narrowing(self.cut, small, self.module)
        try:
            first = search.attempt({})
            if first.agrees:
                return {}, tied
            ties = self._joined(tied, first.conflicts, rows)
            if ties != tied:
                return {}, ties
            return {kind: wider.why for kind, wider in search.narrowest().widths.items()}, tied
        except WriteBackError as fault:
            return {self.dependencies.by_name[name].kind: reason_of(fault) for name in rows}, tied
        finally:
            search.undo.rollback()

    def _rows(self, groups: Sequence[Group], tied: Ties) -> Iterator[tuple[str, tuple[tuple[int, ...]]]]:
        """Retained indices of a trial cut: widths near two thirds, which differ where groups are equally wide."""
        first = {name: names[0] for names in tied for name in names}
        known, counts = dict[str, int](), defaultdict[int, int](int)
        for group in groups:
            key = first.get(group.name, group.name)
            legal = Knob.of([group], 1, self.eligible.widths.get(group.kind)).legal[:-1]
            if not legal:
                continue
            near = sorted(legal, key=lambda width: abs(3 * width - 2 * group.size))[:VARIED]
            if key not in known:
                known[key] = near[counts[group.size] % len(near)]
                counts[group.size] += 1
            yield group.name, (tuple(range(known[key])),)

    def _joined(self, tied: Ties, conflicts: Sequence[Conflict], rows: Mapping[str, object]) -> Ties:
        """Ties of before, with those of groups whose sizes the module computes from one number."""
        graph: nx.Graph[str] = nx.Graph()
        for names in (*tied, *(tie for conflict in conflicts for tie in self._alike(conflict, rows))):
            nx.add_path(graph, names)
        return tuple(sorted(tuple(sorted(names)) for names in nx.connected_components(graph)))

    def _alike(self, conflict: Conflict, rows: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
        """Groups of one size whose cuts change the literals of a conflict; none if a literal cannot change."""
        by_size: dict[int, dict[str, None]] = {}
        for literal in conflict.literals:
            axes = [axis for axis in self.dependencies.axes_of(literal.node) if axis.size == literal.before]
            inside = [self.dependencies.by_prime[p] for a in axes for p in primes(a) if p in self.dependencies.by_prime]
            cut = [group for group in inside if group.name in rows]
            if not cut:
                return
            for group in cut:
                by_size.setdefault(group.size, {})[group.name] = None
        yield from (tuple(names) for names in by_size.values() if len(names) > 1)
