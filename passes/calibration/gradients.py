"""The pass that gathers gradients of a loss on calibration inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.contributions import Contribution
from graphprune.axes.groups import Dependencies, Group
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError, choices
from graphprune.evaluation.masked_loss import Objective
from graphprune.ir.program import Program
from graphprune.passes.calibration.backward_walk import BackwardWalk
from graphprune.passes.calibration.gradient_taps import InputTap, LayerTaps, RowTap, output_taps
from graphprune.passes.calibration.loss_of_outputs import Loss, likelihood, next_token_loss, projection
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible
from graphprune.planning.index_scores import at_consumers, by_index, contributions_of, rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.solvers.embedding_tables import embedding_tables
from graphprune.solvers.factorable import factorable
from graphprune.statistics.collector import Calibration, input_leaf, predicted_inputs
from graphprune.statistics.moments import FactorGradients, GradientSums, OutputGradients, ParameterGradients
from graphprune.support.durable_steps import Stage, Step, stage

#: The facts about the places of gradients, by the name of the place.
PLACES = {
    "parameters": (ParameterGradients,),
    "outputs": (OutputGradients,),
    "layers": (OutputGradients, FactorGradients),
}


@PASSES.register("gradients")
@dataclass(frozen=True)
class Gradients(Pass):
    """Gather gradients of a loss by backward passes over the dense model.

    `of` is their place: all ``parameters`` of eligible groups; or the ``outputs`` of the linear layers that contract
    such groups, of which the Gram matrices are gathered, with those of the inputs of these layers; or, with ``layers``,
    also those of all linear layers that can have a lower rank, and of lookups in embedding tables, with the Gram
    matrices of the inputs of their heads. By default, later passes of the pipeline decide. `most` is the greatest
    number of calibration batches. With `by_segment`, which needs gradients at outputs, the backward pass holds the
    activations and the weights of one segment of the graph at a time, and runs each segment forwards twice.

    The loss of a causal language model is that of the next token; for any other model, `loss` is set from Python.
    Without it, Gram matrices are gathered of random projections of the outputs: their expected cost of an error is the
    squared error of the outputs, relative to those of the dense model.
    """

    name: ClassVar[str] = "gradients"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Calibration)
    reads: ClassVar[tuple[type, ...]] = (GradientSums,)
    makes_with: ClassVar[Mapping[type, str]] = MappingProxyType(
        {OutputGradients: "of=outputs", FactorGradients: "of=layers"}
    )
    pure: ClassVar[bool] = True
    resources: ClassVar[tuple[str, ...]] = ("gradients",)
    loss: Loss | None = field(default=None, repr=False)
    of: str = "auto"
    most: int | None = None
    by_segment: bool = False

    @property
    def makes(self) -> tuple[type, ...]:
        """The sums, and the facts about their places."""
        return (GradientSums, *PLACES.get(self.of, PLACES["parameters"]))

    @property
    def memory_bounded(self) -> bool:
        """Whether it can run by segment."""
        return self.of in ("outputs", "layers")

    def before(self, later: Sequence[Pass]) -> Pass:
        """The pass with the place that later passes need, where it is not set."""
        needed = {fact for step in later for fact in step.needs}
        place = next((place for place in reversed(PLACES) if {*PLACES[place]} <= needed), self.of)
        return replace(self, of=place) if self.of == "auto" else self

    def check(self) -> None:
        """Refuse an unknown place, and parameters by segment.

        Raises:
            CalibrationError: if the place is unknown, or has no gradients by segment.
        """
        if self.of not in ("auto", *PLACES):
            raise CalibrationError(f"no gradients of {self.of!r}; {choices(self.of, PLACES)}")
        if self.by_segment and self.of == "parameters":
            raise CalibrationError("gradients of parameters are not gathered by_segment; set of=outputs or of=layers")

    def run(self, program: Program) -> Program:
        """The program with gradients.

        Raises:
            CalibrationError: if there is no loss, or a gradient is not finite.
        """
        at_outputs = self.of in ("outputs", "layers")
        sums = self._at_outputs(program) if at_outputs else self._at_parameters(program)
        fresh = program.without(OutputGradients, FactorGradients) if at_outputs else program
        return fresh.with_facts(sums, *(place() for place in self.makes if place is not GradientSums))

    def _at_outputs(self, program: Program) -> GradientSums:
        """The sums at outputs; a repeated run continues after the last segment that it has stored."""
        loss, terms = self._loss(program)
        by_window = self.loss is None and terms > 1
        calibration, sizes = self._divided(program.fact(Calibration), by_window)
        if by_window:
            loss = next_token_loss(program.with_facts(calibration))
        contributions = _contributions(program)
        taps = self._taps(program, contributions)
        walk = BackwardWalk.start(
            program, calibration, lambda y, i: loss(y, i) / sizes[i], taps.by_node, not self.by_segment
        )
        batches = len(program.fact(Calibration).batches[: self.most])
        known = program.facts.get(GradientSums) or GradientSums({}, {}, {}, batches)
        new = GradientSums.joined(self._walked(walk, taps))
        sums = {"output_grams": new.output_grams, "input_grams": new.input_grams, "input_moments": new.input_moments}
        routed = _energies(new.routed, contributions, program)
        return replace(known, **sums, routed=routed, terms=terms, own=self.loss is None)

    def _walked(self, walk: BackwardWalk, taps: LayerTaps) -> list[GradientSums]:
        """The sums of each segment, the last one first, memory-mapped if a workspace stores them.

        Those by a loss from Python, which has no name by which a repeated run would know it, are not stored.
        """
        steps = stage("gradients") if self.loss is None else Stage()
        done = steps.finished(len(walk.segments))
        remaining = len(walk.segments) - len(done)
        if not remaining:
            return [_sums_of(step) for step in done]
        walk.slopes = done[-1].values["slopes"] if done else ()
        with progress("differentiating", (2 * remaining - 1) * len(walk.stream.batch_indices)) as tick:
            walk.forward(remaining, tick)
            for _ in range(remaining):
                tensors, table = taps.finish(walk.back(tick).names).to_tensors()
                done.append(steps.finish(Step(table, tensors, {"slopes": walk.slopes})))
        steps.wait()
        return [_sums_of(step) for step in done]

    def _taps(self, program: Program, contributions: Mapping[str, Sequence[Contribution]]) -> LayerTaps:
        groups, dependencies = program.fact(Eligible).groups, program.fact(Dependencies)
        everywhere = self.of == "layers"
        more = factorable(program, dependencies)[0] if everywhere else []
        tables = embedding_tables(program, dependencies)[0] if everywhere else []
        layers = (*dependencies.maps_of(groups), *dependencies.stacked(groups), *more)
        outputs = output_taps(program, layers, [node for table in tables for node in table.lookups])
        heads = {head.node: head for table in tables for head in table.heads}
        inputs = {head.x: InputTap(head.features) for head in heads.values()}
        return LayerTaps(outputs, heads, inputs, _row_taps(contributions))

    def _at_parameters(self, program: Program) -> GradientSums:
        groups, contributions = program.fact(Eligible).groups, _contributions(program)
        names = {place.parameter for group in groups for place in group.places} & program.parameters
        taps, sums = LayerTaps({}, {}, {}, _row_taps(contributions)), _Sums(program, groups)
        calibration = replace(self._divided(program.fact(Calibration), by_window=False)[0], device="cpu")
        walk = BackwardWalk.start(program, calibration, self.loss or likelihood(program), taps.by_node, whole=True)
        with progress("differentiating", len(calibration.batches)) as step:
            walk.forward(1)
            whole = walk.back(
                step, sorted(names), lambda weights: sums.add({n: _gradient(n, w) for n, w in weights.items()})
            )
        routed = _energies(taps.finish(whole.names).routed, contributions, program)
        new = GradientSums(sums.sums, sums.squares, sums.masks, sums.batches, routed=routed)
        known: GradientSums | None = program.facts.get(GradientSums)
        if known is None:
            return new
        return replace(known, sums=new.sums, squares=new.squares, masks=new.masks, batches=new.batches, routed=routed)

    def _loss(self, program: Program) -> tuple[Loss, int]:
        """The loss of which Gram matrices are gathered, and the number of terms of whose mean that of a batch is."""
        leaves = program.fact(Calibration).batches[0]
        if self.loss is not None:
            return self.loss, next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)
        if not Objective.of(program).is_language_model:
            return projection(program), 1
        return next_token_loss(program), input_leaf(program, leaves, predicted_inputs(program)[0])[:, 1:].numel()

    def _divided(self, calibration: Calibration, by_window: bool) -> tuple[Calibration, list[int]]:
        """The first batches, or each of their windows of a text as a batch, and the size of the batch of each.

        A backward pass then holds the activations of one window, and gives its outputs the gradients that they have in
        the batch, since no window depends on another.
        """
        if self.loss is not None:
            calibration = replace(calibration, device="cpu")  # where the data of the loss are
        if not by_window:
            batches = calibration.batches[: self.most]
            return replace(calibration, batches=batches), [1] * len(batches)
        each = [calibration.windows(i) for i in range(len(calibration.batches[: self.most]))]
        parts = [window for windows in each for window in windows]
        return replace(calibration, batches=parts), [len(windows) for windows in each for _ in windows]


def _sums_of(step: Step) -> GradientSums:
    return GradientSums.from_tensors(step.tensors, step.facts)


def _contributions(program: Program) -> dict[str, list[Contribution]]:
    """The contributions of groups that a router chooses from, by group."""
    dependencies = program.fact(Dependencies)
    by_group = {group.name: contributions_of(group, dependencies) for group in program.fact(Eligible).groups}
    return {name: list(parts) for name, parts in by_group.items() if parts}


def _row_taps(contributions: Mapping[str, Sequence[Contribution]]) -> dict[str, RowTap]:
    """Taps at these contributions, by node."""
    return {part.node: RowTap(part.offsets) for parts in contributions.values() for part in parts}


def _energies(
    by_node: Mapping[str, Tensor], contributions: Mapping[str, Sequence[Contribution]], program: Program
) -> dict[str, Tensor]:
    """The sums of all taps by the index of their group, shape (rows, group.size), by group."""
    dependencies = program.fact(Dependencies)

    def of_group(part: Contribution, group: Group) -> Tensor:
        energies = by_node.get(part.node, torch.zeros(part.axis.size, dtype=torch.float64))
        return by_index(energies, part.axis, group, dependencies)

    return {
        name: torch.stack([of_group(part, dependencies.by_name[name]) for part in parts]).sum(0)
        for name, parts in contributions.items()
    }


def _gradient(name: str, weight: Tensor) -> Tensor:
    grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    if not torch.isfinite(grad).all():
        raise CalibrationError(f"the gradient of {name} holds NaN or infinity; check the loss and the calibration data")
    return grad


@dataclass
class _Sums:
    """Sums over batches."""

    program: Program
    groups: Sequence[Group]
    sums: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    batches: int = 0

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradients of one batch."""
        self.batches += 1
        for name, grad in gradients.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + grad
            self.squares[name] = self.squares.get(name, torch.zeros(())) + grad.square()
        evidence = Evidence(self.program, self.program.fact(Dependencies), None)
        for group in self.groups:
            slope = _slope(group, evidence, gradients)
            self.masks[group.name] = self.masks.get(group.name, torch.zeros(())) + slope.square()


def _slope(group: Group, evidence: Evidence, gradients: Mapping[str, Tensor]) -> Tensor:
    """The derivative of the loss by a factor on each index of the group in all its consumers, (rows, group.size)."""
    if not evidence.dependencies.consumers_of(group):
        return torch.zeros(rows_of(group, evidence.dependencies), group.size, dtype=torch.float64)
    return at_consumers(
        group, evidence, lambda c: (evidence.matrix(c) * c.matrix(gradients[c.weight])).sum(0, dtype=torch.float64)
    )
