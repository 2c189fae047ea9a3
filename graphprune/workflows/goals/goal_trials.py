"""Trials of shares from one calibration: cut, refit and measure; finished trials are stored next to the output."""

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path

import torch

from graphprune.errors import PlanError
from graphprune.ir.program import Program, Rewritten
from graphprune.pipeline import Pass, Pipeline
from graphprune.planning.facts import Scores
from graphprune.planning.plan import Plan
from graphprune.solvers.row_groups import EmbeddingGroups
from graphprune.statistics.paired import PairedSamples
from graphprune.support.durable_steps import read_manifest, write_manifest
from graphprune.support.workspace import Workspace, current_workspace, use_workspace, writable
from graphprune.workflows.goals.goal_measures import GoalCosts, Qualities, Reading
from graphprune.workflows.goals.goal_outcome import ShareTrial
from graphprune.workflows.goals.share_search import PlanCurve
from graphprune.workflows.runs.run_record import planned_sizes

log = logging.getLogger("graphprune.run")
GRID = 12  # shares of the plan's curve
LEAST = 0.005  # share that the curve starts with, and the accuracy of its end
MIDDLE = 0.25  # share at which shared facts are measured
GREATEST = 0.95
PLANNING = ("group-embeddings", "allocate", "select")
HELD = 2  # pruned programs at once: the better of two trials is often the earlier one
DIGITS = 6  # of shares, in the names of trials

#: Pipeline that removes a share.
Build = Callable[[float], Pipeline]
#: Further measurements of a pruned program, by name.
Measure = Callable[[Program], Mapping[str, Reading]]


def shared_passes(build: Build) -> int:
    """Number of the first passes that are the same for all shares: analysis, calibration, scores."""
    first, second = build(MIDDLE).passes, build(2 * MIDDLE).passes
    return next(i for i, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])


@dataclass
class ShareTrials:
    """Trials of shares of a program, on which the shared passes are run once.

    `held` are the pruned programs of the latest trials, by their shares.
    """

    program: Program
    build: Build
    costs: GoalCosts
    qualities: Qualities
    more: Measure
    done: dict[float, ShareTrial] = field(default_factory=dict)
    held: dict[float, Program] = field(default_factory=dict)

    @classmethod
    def start(
        cls, program: Program, build: Build, costs: GoalCosts, qualities: Qualities, more: Measure
    ) -> "ShareTrials":
        """Run the shared passes, and read the trials that an earlier run has finished."""
        passes = build(LEAST).passes
        count = shared_passes(build)
        ready = Pipeline(passes[:count], planned=passes[count:])(program)
        ready = build(MIDDLE).passes[count].shared(ready)
        trials = cls(ready, build, costs, qualities, more)
        trials._read()
        return trials

    @cached_property
    def curve(self) -> PlanCurve:
        """Predicted loss of shares: the scores that their plans remove; the shares themselves where none are known."""
        most = self._most()
        shares = [LEAST + (most - LEAST) * i / (GRID - 1) for i in range(GRID)]
        losses = [self._removed_scores(share) for share in shares]
        if any(loss is None for loss in losses):
            return PlanCurve([0.0, *shares], [0.0, *shares])
        rising, points = 0.0, [(0.0, 0.0)]
        for share, loss in zip(shares, losses, strict=True):
            rising = max(rising + 1e-9 * share, loss or 0.0)
            points.append((share, rising))
        return PlanCurve([share for share, _ in points], [loss for _, loss in points])

    def costs_at(self, share: float) -> Mapping[str, Reading]:
        """Counts after a share by its plan, without cutting; of ranks and blocks by the share itself."""
        planned = self.planned(share)
        if planned is None or self._has_ranks:
            return self.costs.without(share)
        plan = planned.fact(Plan)
        return self.costs.of(planned, planned, plan, sum(planned_sizes(planned, plan).values()))

    def trial(self, share: float) -> ShareTrial:
        """Prune by a share, measure, and store the measurements; neither a share nor a plan is tried twice."""
        share = round(share, DIGITS)
        digest = "" if share in self.done else self._digest(share)
        twin = next((trial for trial in self.done.values() if digest and trial.plan == digest), None)
        if twin is not None:
            self.done[share] = replace(twin, share=share)
        if share not in self.done:
            small = self.pruned(share)
            plan, rewritten = small.fact(Plan), small.facts.get(Rewritten)
            original = rewritten.original if rewritten else small
            readings = {**self.costs.of(original, small, plan, small.count()), **self.qualities.of(small)}
            self.done[share] = ShareTrial(share, {**readings, **self.more(small)}, digest)
            self._write()
            log.info("share %.4f: %s", share, ", ".join(_shown(self.done[share])))
        return self.done[share]

    def pruned(self, share: float) -> Program:
        """Program with a share removed; its finished steps are stored in a folder of its own."""
        share = round(share, DIGITS)
        if share in self.held:
            return self.held[share]
        self._release()
        if not share:  # the dense model
            return self.program.with_facts(Plan(self.program.fingerprint(), {}, {}))
        passes = Pipeline(self.build(share).passes[self._shared :], given=tuple(self.program.facts))
        with ExitStack() as stack:
            place = current_workspace()
            if place is not None:
                own = Workspace(_folder(place, share), place.spill_bytes, place.memory_bytes, place.time_share)
                stack.enter_context(use_workspace(own))
            small = passes(self.program)
        self.held[share] = small
        return small

    @cached_property
    def _shared(self) -> int:
        return shared_passes(self.build)

    def _release(self) -> None:
        """Release all but the latest program, with its files, which memory-mapped tensors outlive."""
        place = current_workspace()
        for share in [*self.held][: 1 - HELD or None]:
            del self.held[share]
            if place is not None:
                shutil.rmtree(_folder(place, share), ignore_errors=True)

    def planned(self, share: float) -> Program | None:
        """Program with the plan of a share; None where not only tables are grouped, and groups allocated and selected.

        Raises:
            PlanError: if the share cannot be removed.
        """
        steps = self._planning(share)
        return reduce(lambda program, step: step.run(program), steps, self.program) if steps else None

    def _planning(self, share: float) -> tuple[Pass, ...]:
        """Passes that plan a share, if they follow the shared passes."""
        steps = self.build(share).passes[self._shared : self._shared + len(PLANNING)]
        at = next((i for i, step in enumerate(steps) if step.name == "select"), -1)
        names = tuple(step.name for step in steps[: at + 1])
        return steps[: at + 1] if names in (PLANNING, PLANNING[1:]) else ()

    @cached_property
    def _has_ranks(self) -> bool:
        """Whether layers get low ranks in addition to what the plan cuts."""
        return any(step.name == "allocate-ranks" for step in self.build(LEAST).passes)

    def _digest(self, share: float) -> str:
        """Hash of the cut of a share; empty where it is not known before."""
        planned = None if self._has_ranks or not share else self.planned(share)
        return planned.fact(Plan).digest if planned is not None else ""

    def _removed_scores(self, share: float) -> float | None:
        """Sum of the scores that the plan of a share removes; None without a plan or with scores below 0."""
        planned = self.planned(share)
        if planned is None or Scores not in planned.facts:
            return None
        tables = planned.facts.get(EmbeddingGroups)
        if tables is not None and tables.saved and tables.score is None:
            return None
        total, scores = (tables.score or 0.0) if tables else 0.0, planned.fact(Scores).by_group
        for name, rows in planned.fact(Plan).groups.items():
            retained = torch.tensor(rows)
            values = scores[name].double()
            if len(values) != len(retained) or not bool(values.isfinite().all()) or float(values.min()) < 0:
                return None
            total += float(values.sum() - values.gather(1, retained).sum())
        return total

    def _most(self) -> float:
        """Greatest share that can be planned."""
        low, high = LEAST, GREATEST
        if self._plans(high):
            return high
        while high - low > LEAST:
            middle = (low + high) / 2
            low, high = (middle, high) if self._plans(middle) else (low, middle)
        return low

    def _plans(self, share: float) -> bool:
        try:
            self.planned(share)
        except PlanError:
            return False
        return True

    @property
    def _file(self) -> Path | None:
        place = current_workspace()
        return place.folder / "trials.json" if place is not None else None

    def _write(self) -> None:
        """Store the measurements of all trials."""
        place = current_workspace()
        if place is None or self._file is None:
            return
        known = {name: samples.to_dict() for name, samples in self.qualities.known.items()}
        trials = [
            {
                "share": t.share,
                "plan": t.plan,
                "readings": {name: reading.to_dict() for name, reading in t.readings.items()},
            }
            for t in self.done.values()
        ]
        with writable(place.folder):
            write_manifest(self._file, {"trials": trials, "dense": known})
        place.finished += 1

    def _read(self) -> None:
        table = read_manifest(self._file) if self._file is not None else None
        known = table["dense"] if table else {}
        self.qualities.known = {name: PairedSamples.of(samples) for name, samples in known.items()}
        for one in table["trials"] if table else ():
            readings = {name: Reading.of(reading) for name, reading in one["readings"].items()}
            self.done[one["share"]] = ShareTrial(one["share"], readings, one["plan"])
        if self.done:
            log.info("%d trials were finished before", len(self.done))


def _folder(place: Workspace, share: float) -> Path:
    return place.folder / f"share-{share:.{DIGITS}f}"


def _shown(trial: ShareTrial) -> list[str]:
    """Measurements relative to the dense model, as text."""
    ratios = {name: reading.pruned.relative_to(reading.dense).value for name, reading in trial.readings.items()}
    return [f"{name} {ratio:.4g}x" for name, ratio in ratios.items()]
