"""Requirements of an export target on pruning: where the model must run, and which widths are fast."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from graphprune.axes.groups import Dependencies
from graphprune.errors import PlanError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import Needs
from graphprune.huggingface import model_folder
from graphprune.ir.program import Program
from graphprune.planning.plan import Plan

FOLDER = Needs(("stock", "per-layer", "free"), 8, 8, "")  # for a pruned model without a target
GRAPH = Needs(("free", "stock", "per-layer"), 1, 1, "")  # for a plan without a target


@dataclass(frozen=True)
class TargetNeeds:
    """Requirements of a run on destination and widths, from its target or its options."""

    target: str | None
    needs: Needs
    destination: str
    align: int | None

    @classmethod
    def of(
        cls, target: str | None, destination: str | None, align: int | None, otherwise: Needs = FOLDER
    ) -> "TargetNeeds":
        """Requirements of a target, or `otherwise` without one; explicit destination and alignment take precedence.

        Raises:
            RegistryError: if there is no such target.
            PlanError: if the target cannot be made of a model pruned for that destination.
        """
        if target is None:
            return cls(None, otherwise, destination or otherwise.destinations[0], align)
        needs = EXPORTERS[target].needs
        if destination is not None and destination not in needs.destinations:
            raise PlanError(
                f"target {target} cannot be made of a model pruned for destination {destination}; "
                f"use {' or '.join(needs.destinations)}"
            )
        return cls(target, needs, destination or needs.destinations[0], align)

    def accepted(self, program: Program) -> Program:
        """Return the program if it can be exported for the target.

        Raises:
            PlanError: if it generates text, and the target exports graphs without a cache.
        """
        source, graph = program.source, self.needs.graphs and self.destination == "free"
        if graph and source is not None and source.kind == "huggingface" and _generates_text(source.path):
            others = " or ".join(name for name in self.needs.destinations if name != "free")
            raise PlanError(
                f"target {self.target} exports graphs of destination free without a cache, and {source.path} generates "
                f"text; use destination {others}, or a target of ONNX files"
            )
        return program

    def align_of(self, program: Program) -> int:
        """Number whose multiples widths must be."""
        return self.align if self.align is not None else self._fast(program)

    def notes(self, program: Program, plan: Plan) -> tuple[str, ...]:
        """Destination and alignment for the target, and warnings about widths that are no faster than wider ones."""
        if self.target is None:
            return ()
        fast = self._fast(program)
        decision = (
            f"for target {self.target}: destination {self.destination}, widths in multiples of {self.align_of(program)}"
        )
        return (f"{decision} ({self.needs.why})", *self._slow(program, plan, fast))

    def _fast(self, program: Program) -> int:
        return self.needs.convolutions if _convolutional(program) else self.needs.products

    def _slow(self, program: Program, plan: Plan, fast: int) -> Iterator[str]:
        """Warnings about widths that end within a block although the group could fill that block."""
        groups = program.fact(Dependencies).by_name if plan.groups else {}
        by_width: dict[tuple[int, int], list[str]] = {}
        for name, width in plan.widths.items():
            inner, size = groups[name].inner, groups[name].size
            wider = -(-width * inner // fast) * fast
            if width < size and width * inner % fast and wider <= size * inner:
                by_width.setdefault((width * inner, wider), []).append(name)
        for (width, wider), names in by_width.items():
            yield (
                f"warning: {len(names)} groups such as {names[0]} are {width} wide, which runs no faster on "
                f"{self.target} than {wider}; omit --align, or use a multiple of {fast}"
            )


def _generates_text(folder: Path) -> bool:
    settings = model_folder.config(folder)
    return model_folder.generates_text(model_folder.model_class(folder, settings), settings)


def _convolutional(program: Program) -> bool:
    """Whether most parameters are those of convolutions."""
    sizes = [(len(shape) > 2, prod(shape)) for shape in program.shapes().values()]
    return sum(n if filters else -n for filters, n in sizes) > 0
