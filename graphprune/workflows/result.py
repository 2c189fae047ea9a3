"""Outcome of a pruning run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from graphprune.errors import PlanError
from graphprune.ir.program import Program
from graphprune.planning.plan import FILE as PLAN
from graphprune.planning.plan import Plan
from graphprune.reports.report import Report, digests
from graphprune.support.atomic_output import new_folder
from graphprune.workflows.goals.goal_outcome import Reached
from graphprune.workflows.saved_folder import write, write_module
from graphprune.writeback.module import WrittenBack

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Result:
    """Outcome of a run: the report, and the plan and pruned program of each part of the model.

    A part is a submodule by its path, "" the whole model. There are no programs if only a plan is made. `module` is the
    pruned module (None for a model in files), `written_back` what each part of it became, and `untouched` the reasons
    why other parts are as they were.
    """

    report: Report
    plans: Mapping[str, Plan]
    programs: Mapping[str, Program]
    module: Any = None
    written_back: Mapping[str, WrittenBack] = field(default_factory=dict)
    untouched: Mapping[str, str] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """Plan of the whole model.

        Raises:
            PlanError: if parts of it have plans of their own.
        """
        if "" not in self.plans:
            raise PlanError(f"the module was pruned in parts, {', '.join(self.plans)}; see plans and programs of each")
        return self.plans[""]

    @property
    def program(self) -> Program | None:
        """Pruned program of the whole model; None if only a plan is made, or parts were pruned."""
        return self.programs.get("")

    def save(self, output: str | Path, *, force: bool = False) -> None:
        """Save the pruned model as a folder, without pickles, for `graphprune.load`.

        A model of transformers is saved for its destination, so that ``from_pretrained`` loads it. Any other is saved
        as a graph; a module also as its state, which `graphprune.load` loads into a new one: ``load(output,
        into=Net())``.

        Raises:
            ExportError: if a file cannot be written or does not agree with the model, or `output` may not be written.
        """
        with new_folder(output, force) as folder:
            self.fill(folder)

    def fill(self, folder: Path) -> None:
        """Fill a folder, as `save` does."""
        errors, destination = dict[str, float](), self.report.destination
        if self.program is not None:
            errors |= dict(write(self.program, folder, destination))
        if self.module is not None and destination == "free":
            errors |= write_module(self.module, self.programs, self.plans, folder)
        elif self.program is not None:
            self.plan.save(folder / PLAN)
        reached = self.program.facts.get(Reached) if self.program is not None else None
        if reached is not None and reached.frontier:
            reached.curve().save(folder, self.report.name)
        replace(self.report, errors={**self.report.errors, **errors}, sha256=digests(folder)).save(folder)

    def __repr__(self) -> str:
        pairs = [(path, [self.plans[path], *([self.programs[path]] if path in self.programs else [])])
                 for path in self.plans]  # fmt: skip
        texts = [repr(self.report)]
        texts += [f"{path}: {part!r}" if path else repr(part) for path, parts in pairs for part in parts]
        texts += [f"{path or 'the whole module'}: {written}" for path, written in self.written_back.items()]
        texts += [f"{path or 'the whole module'} is as it was: {why}" for path, why in self.untouched.items()]
        return "\n".join(["Result:", *(f"  {line}" for text in texts for line in text.splitlines())])
