"""The pass that gathers gradients of a loss on calibration inputs."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphprune.axes.contributions import Contribution
from graphprune.axes.groups import Dependencies, Group
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError, choices
from graphprune.evaluation.masked_loss import Objective
from graphprune.ir.program import Program
from graphprune.passes.calibration.gradient_taps import InputTap, gradient_taps, insert_taps, weighted_moments
from graphprune.passes.calibration.loss_of_outputs import Loss, likelihood, next_token_loss, projection
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible
from graphprune.planning.index_scores import at_consumers, by_index, contributions_of, rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.solvers.embedding_tables import embedding_tables
from graphprune.solvers.factorable import factorable
from graphprune.statistics.collector import (
    Calibration,
    input_leaf,
    matmul_autocast,
    predicted_inputs,
)
from graphprune.statistics.moments import FactorGradients, GradientSums, OutputGradients, ParameterGradients
from graphprune.statistics.routing import by_owner
from graphprune.support.durable_steps import Step, stage

#: The facts about the places of gradients, by the name of the place.
PLACES = {
    "parameters": (ParameterGradients,),
    "outputs": (OutputGradients,),
    "layers": (OutputGradients, FactorGradients),
}


@PASSES.register("gradients")
@dataclass(frozen=True)
class Gradients(Pass):
    """Gather gradients of a loss by full backward passes over the dense model.

    `of` is their place: all ``parameters`` of eligible groups; or the ``outputs`` of the linear layers that contract
    such groups, of which the Gram matrices are gathered, with those of the inputs of these layers; or, with ``layers``,
    also those of all linear layers that can have a lower rank, and of lookups in embedding tables, with the Gram
    matrices of the inputs of their heads. By default, later passes of the pipeline decide. `most` is the greatest
    number of calibration batches.

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

    @property
    def makes(self) -> tuple[type, ...]:
        """The sums, and the facts about their places."""
        return (GradientSums, *PLACES.get(self.of, PLACES["parameters"]))

    def before(self, later: Sequence[Pass]) -> Pass:
        """The pass with the place that later passes need, where it is not set."""
        needed = {fact for step in later for fact in step.needs}
        place = next((place for place in reversed(PLACES) if {*PLACES[place]} <= needed), self.of)
        return replace(self, of=place) if self.of == "auto" else self

    def check(self) -> None:
        """Refuse an unknown place.

        Raises:
            CalibrationError: if the place is unknown.
        """
        if self.of not in ("auto", *PLACES):
            raise CalibrationError(f"no gradients of {self.of!r}; {choices(self.of, PLACES)}")

    def run(self, program: Program) -> Program:
        """The program with gradients.

        Raises:
            CalibrationError: if there is no loss, or a gradient is not finite.
        """
        at_outputs = self.of in ("outputs", "layers")
        sums = self._stored(self._at_outputs if at_outputs else self._at_parameters, program)
        fresh = program.without(OutputGradients, FactorGradients) if at_outputs else program
        return fresh.with_facts(sums, *(place() for place in self.makes if place is not GradientSums))

    def _stored(self, gather: Callable[[Program], GradientSums], program: Program) -> GradientSums:
        """The sums, memory-mapped if a workspace stores them; those by a loss from Python, which has no name, are not.

        A repeated run continues with those that are stored.
        """
        if self.loss is not None:
            return gather(program)
        steps = stage("gradients")
        done = steps.finished(1)
        if not done:
            tensors, table = gather(program).to_tensors()
            done = [steps.finish(Step(table, tensors))]
            steps.wait()
        return GradientSums.from_tensors(done[0].tensors, done[0].facts)

    def _at_outputs(self, program: Program) -> GradientSums:
        groups, module = program.fact(Eligible).groups, program.module()
        watched(module, program, set())
        dependencies, everywhere = program.fact(Dependencies), self.of == "layers"
        more = factorable(program, dependencies)[0] if everywhere else []
        tables = embedding_tables(program, dependencies)[0] if everywhere else []
        layers = (*dependencies.maps_of(groups), *dependencies.stacked(groups), *more)
        heads = {head.node: head for table in tables for head in table.heads}
        loss, terms = self._loss(program)
        predicts = self.loss is None and terms > 1
        rows = _row_taps(module, groups, dependencies)
        taps = gradient_taps(module, program, layers, [node for table in tables for node in table.lookups])
        seen = insert_taps(module, {head.x: InputTap(head.features) for head in heads.values()})
        batches, sizes = len(program.fact(Calibration).batches[: self.most]), list[int]()
        if predicts:
            program, sizes = self._by_window(program)
            loss = next_token_loss(program)
        deque(self._backward(program, module, loss, sizes), maxlen=0)
        known = program.facts.get(GradientSums) or GradientSums({}, {}, {}, batches)
        moments = weighted_moments(taps)
        inputs = {node: seen[head.x].finish(node) for node, head in heads.items()}
        grams = {node: tap.finish(node) for node, tap in taps.items()}
        facts = {"input_grams": inputs, "input_moments": moments}
        return replace(
            known, output_grams=grams, **facts, routed=_energies(rows, dependencies), terms=terms, own=self.loss is None
        )

    def _at_parameters(self, program: Program) -> GradientSums:
        groups, module = program.fact(Eligible).groups, program.module()
        names = {place.parameter for group in groups for place in group.places} & program.parameters
        weights = watched(module, program, names)
        dependencies, sums = program.fact(Dependencies), _Sums(program, groups)
        rows = _row_taps(module, groups, dependencies)
        for _ in self._backward(program, module, self.loss or likelihood(program)):
            sums.add({name: _gradient(name, weight) for name, weight in weights.items()})
        new = GradientSums(sums.sums, sums.squares, sums.masks, sums.batches, routed=_energies(rows, dependencies))
        known: GradientSums | None = program.facts.get(GradientSums)
        if known is None:
            return new
        return replace(
            known, sums=new.sums, squares=new.squares, masks=new.masks, batches=new.batches, routed=new.routed
        )

    def _loss(self, program: Program) -> tuple[Loss, int]:
        """The loss of which Gram matrices are gathered, and the number of terms of whose mean that of a batch is."""
        leaves = program.fact(Calibration).batches[0]
        if self.loss is not None:
            return self.loss, next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)
        if not Objective.of(program).is_language_model:
            return projection(program), 1
        return next_token_loss(program), input_leaf(program, leaves, predicted_inputs(program)[0])[:, 1:].numel()

    def _by_window(self, program: Program) -> tuple[Program, list[int]]:
        """Program whose calibration batches are single windows of a text, and the size of the batch of each.

        A backward pass then holds the activations of one window, and gives its outputs the gradients that they have in
        the batch, since no window depends on another.
        """
        calibration = program.fact(Calibration)
        each = [calibration.windows(i) for i in range(len(calibration.batches[: self.most]))]
        parts = [window for windows in each for window in windows]
        sizes = [len(windows) for windows in each for _ in windows]
        return program.with_facts(replace(calibration, batches=parts)), sizes

    def _backward(
        self, program: Program, module: fx.GraphModule, loss: Loss, sizes: Sequence[int] = ()
    ) -> Iterator[int]:
        """Run the backward pass of every calibration batch; yield the number of the batch after each.

        The loss of a batch is divided by its entry in `sizes`, if there are any.
        """
        calibration = program.fact(Calibration)
        spec = pytree.tree_flatten((program.inputs[0], dict(program.inputs[1])))[1]
        batches = calibration.batches if sizes else calibration.batches[: self.most]
        with progress("differentiating", len(batches)) as step, torch.enable_grad():
            for i, leaves in enumerate(batches):
                args, kwargs = pytree.tree_unflatten(list(leaves), spec)
                module.zero_grad()
                with matmul_autocast(calibration.autocast):
                    value = loss(module(*args, **kwargs), i) / (sizes[i] if sizes else 1)
                value.backward()  # type: ignore[no-untyped-call]
                yield i
                step()


class _RowTap(nn.Module):
    """The identity, which sums up the squared derivatives of the loss by a factor on each row, by their index."""

    def __init__(self) -> None:
        super().__init__()
        self.energies: Tensor | None = None

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        values = rows.detach()

        def add(gradient: Tensor) -> None:
            new = by_owner((gradient * values).sum(1, dtype=torch.float64).square(), ends)
            self.energies = new if self.energies is None else self.energies + new

        rows = rows if rows.requires_grad else rows.detach().requires_grad_()
        rows.register_hook(add)  # type: ignore[no-untyped-call]
        return rows

    def sums(self, size: int) -> Tensor:
        """The sums, shape (size,)."""
        return torch.zeros(size, dtype=torch.float64) if self.energies is None else self.energies


Routed = tuple[_RowTap, Contribution]


def _row_taps(module: fx.GraphModule, groups: Sequence[Group], dependencies: Dependencies) -> dict[str, list[Routed]]:
    """Taps at the contributions of groups that a router chooses from, inserted into the graph, by group."""
    nodes, taps = {node.name: node for node in module.graph.nodes}, dict[str, _RowTap]()
    by_group = {group.name: contributions_of(group, dependencies) for group in groups}
    for part in (part for parts in by_group.values() for part in parts if part.node not in taps):
        taps[part.node], node, name = _RowTap(), nodes[part.node], f"row_tap_{len(taps)}"
        module.add_submodule(name, taps[part.node])
        with module.graph.inserting_after(node):
            tap = module.graph.call_module(name, (node, nodes[part.offsets]))
        node.replace_all_uses_with(tap, delete_user_cb=lambda user, tap=tap: user is not tap)
    module.recompile()
    return {name: [(taps[part.node], part) for part in parts] for name, parts in by_group.items() if parts}


def _energies(routed: Mapping[str, Sequence[Routed]], dependencies: Dependencies) -> dict[str, Tensor]:
    """The sums of all taps by the index of their group, shape (rows, group.size), by group."""
    groups = {name: dependencies.by_name[name] for name in routed}
    return {
        name: torch.stack(
            [by_index(tap.sums(part.axis.size), part.axis, groups[name], dependencies) for tap, part in pairs]
        ).sum(0)
        for name, pairs in routed.items()
    }


def watched(module: fx.GraphModule, program: Program, names: set[str]) -> dict[str, Tensor]:
    """The parameters of these names, which alone require gradients; the graph gets operators that have derivatives."""
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.copy.default:
            node.target, node.args, node.kwargs = _copied, node.args[:2], {}
    module.recompile()
    weights = {program.name(alias): weight for alias, weight in module.named_parameters(remove_duplicate=False)}
    for name, weight in weights.items():
        weight.requires_grad_(name in names and weight.is_floating_point())
    return {name: weights[name] for name in sorted(names) if weights[name].requires_grad}


def _copied(target: Tensor, source: Tensor) -> Tensor:
    """The source in the shape and type of the target; the operator for it has no derivative."""
    return source.to(target.dtype).expand_as(target).clone()


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
