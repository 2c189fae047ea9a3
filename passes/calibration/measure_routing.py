"""The pass that measures what a router sends to each expert, and what the expert adds to the result."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphprune.axes.contributions import Contribution
from graphprune.axes.groups import Dependencies
from graphprune.display.progress import progress
from graphprune.execution.segments import split
from graphprune.ir.program import Program
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible
from graphprune.planning.index_scores import contributions_of
from graphprune.statistics.collector import Calibration
from graphprune.statistics.routing import RoutedSums, Routing
from graphprune.statistics.stream import Stream

log = logging.getLogger(__name__)


@PASSES.register("measure-routing")
@dataclass(frozen=True)
class MeasureRouting(Pass):
    """Count the calibration tokens that reach every expert of an eligible group, and sum the norms of its outputs.

    The outputs are those that are added up: multiplied by the weight of the router. Padding is counted, because the
    tokens of routed rows are unknown.
    """

    name: ClassVar[str] = "measure-routing"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Calibration)
    makes: ClassVar[tuple[type, ...]] = (Routing,)
    memory_bounded: ClassVar[bool] = True
    pure: ClassVar[bool] = True
    resources: ClassVar[tuple[str, ...]] = ("calibration",)

    def run(self, program: Program) -> Program:
        """The program with the sums."""
        dependencies = program.fact(Dependencies)
        groups = [group for group in program.fact(Eligible).groups if group.routed]
        routed = {c.node: c for group in groups for c in contributions_of(group, dependencies)}
        sums = _sums(program, routed)
        for name, each in sums.items():
            if idle := (each.tokens == 0).nonzero().flatten().tolist():
                log.warning(
                    "no calibration token reaches %d of the %d experts at %s: %s",
                    len(idle), len(each.tokens), name, ", ".join(map(str, idle)),
                )  # fmt: skip
        return program.with_facts(Routing(sums))


def _sums(program: Program, routed: Mapping[str, Contribution]) -> dict[str, RoutedSums]:
    """The sums of every contribution, segment by segment."""
    sums = dict[str, RoutedSums]()

    def look(seen: Mapping[str, Tensor]) -> None:
        for name in routed.keys() & seen.keys():
            new = RoutedSums.of(seen[name], seen[routed[name].offsets])
            sums[name] = sums[name] + new if name in sums else new

    stream = Stream.start(program, program.fact(Calibration))
    segments = split(program, routed.keys())
    last = max((i for i, segment in enumerate(segments) if routed.keys() & segment.names), default=-1)
    watch = {name for c in routed.values() for name in (c.node, c.offsets)}
    with progress("measuring the routing", (last + 1) * len(stream.batch_indices)) as tick:
        for segment in segments[: last + 1]:
            stream.entries = stream.advance(segment, stream.program.weights, tick, look=look, watch=watch)
    reduced = {name: RoutedSums.all_reduced(sums.get(name)) for name in routed}
    return {name: each for name, each in reduced.items() if each is not None}
