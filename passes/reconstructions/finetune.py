"""The pass that finetunes a pruned model: biases, norms, and low-rank updates that are merged at the end."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.func import functional_call

from graphprune.axes.groups import Dependencies
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.evaluation.masked_loss import Objective
from graphprune.evaluation.perplexity import logits
from graphprune.evaluation.teacher_distance import divergence, output_distance
from graphprune.ir.program import Factored, Program, Rewritten
from graphprune.ir.weights import Layered
from graphprune.passes.calibration.gradients import watched
from graphprune.passes.calibration.loss_of_outputs import Loss, likelihood
from graphprune.passes.low_rank.factorize import lowered
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Refits
from graphprune.solvers import new_biases
from graphprune.solvers.low_rank_update import LowRankUpdate
from graphprune.statistics.collector import Calibration, matmul_autocast

CHECKS = 10  # evaluations on held-out batches
WARM = 0.1  # share of the steps in which the rate rises, from this share of it


@PASSES.register("finetune")
@dataclass(frozen=True)
class Tune(Pass):
    """Take `steps` of AdamW on all parameters of one dimension: biases and norms (PERP, arXiv:2312.15230).

    With a `rank`, every linear layer with an unshared weight also gets an update ``B A`` of that rank (LoRA,
    arXiv:2106.09685), which is merged into the weight at the end. A layer that a refit gave a lower rank gets no
    update; once it is factorized, its factors do.

    A step takes one calibration batch. The learning rate rises to `rate` in the first tenth of the steps, since the
    first steps of AdamW have full length and follow the noise of single batches; then it falls to 0. With
    ``aim=labels`` the loss is `loss`, set from Python, or that of the next token for causal language models; with
    ``aim=dense`` it is the Kullback-Leibler divergence from the predictions of the dense model (distillation,
    arXiv:1503.02531). For other models it is the squared error of the outputs, relative to those of the dense model.
    The result is the best weights on held-out batches, which may be the initial ones.
    """

    name: ClassVar[str] = "finetune"
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Refits, Factored)
    makes: ClassVar[tuple[type, ...]] = (Refits,)
    resources: ClassVar[tuple[str, ...]] = ("gradients",)
    steps: int = 100
    rate: float = 1e-3
    rank: int = 0
    aim: str = "labels"
    loss: Loss | None = field(default=None, repr=False)

    def check(self) -> None:
        """Refuse an unknown aim.

        Raises:
            CalibrationError: if the aim is unknown.
        """
        if self.aim not in ("labels", "dense"):
            raise CalibrationError(f"aim must be labels or dense, got {self.aim!r}")

    def run(self, program: Program) -> Program:
        """The program with finetuned weights.

        Raises:
            CalibrationError: if the loss is not finite.
        """
        training = _Training.of(program, self._loss(program), self.rank)
        best = training.run(self.steps, self.rate) if training.weights or training.updates else {}
        refits = program.facts.get(Refits) or Refits({}, {}, program.weights)
        tuned = tuple(sorted({*refits.tuned, *best}))
        return program.with_facts(replace(refits, tuned=tuned), weights=Layered((best, program.weights)))

    def _loss(self, program: Program) -> Loss:
        labels = self.aim == "labels"
        return self.loss if labels and self.loss else known_loss(program, distilled=not labels)


def known_loss(program: Program, distilled: bool = False) -> Loss:
    """The loss of the next token; or, with `distilled` or for other models, the distance to the dense model."""
    original, calibration = program.fact(Rewritten).original, program.fact(Calibration)
    original = original.with_facts(calibration)
    predicts = Objective.of(original).is_language_model
    if predicts and not distilled:
        return likelihood(original)
    dense, call = original.module(), _caller(original)

    @torch.no_grad()
    def reference(i: int) -> Any:
        return call(dense, i)

    def scores(output: Any) -> Tensor:
        return logits(output).flatten(0, 1).float()

    if predicts:
        return lambda output, i: divergence(scores(output), scores(reference(i)))
    return lambda output, i: output_distance(output, reference(i))


class BatchCall(Protocol):
    """Call of a module with the inputs of a calibration batch, and with some weights swapped."""

    def __call__(self, module: fx.GraphModule, i: int, swapped: Mapping[str, Tensor] = MappingProxyType({})) -> Any:
        """The outputs of the module on batch `i`."""


def _caller(program: Program) -> BatchCall:
    batches = program.fact(Calibration).batches
    spec = pytree.tree_flatten((program.inputs[0], dict(program.inputs[1])))[1]

    def call(module: fx.GraphModule, i: int, swapped: Mapping[str, Tensor] = MappingProxyType({})) -> Any:
        args, kwargs = pytree.tree_unflatten(list(batches[i]), spec)
        return functional_call(module, dict(swapped), args, kwargs)

    return call


@dataclass
class _Training:
    """A module whose weights are trained on some batches, and evaluated on `held` ones."""

    module: fx.GraphModule
    call: BatchCall
    loss: Loss
    weights: Mapping[str, Tensor]
    updates: Mapping[str, LowRankUpdate]
    aliases: Mapping[str, str]
    fitted: list[int]
    held: list[int]
    autocast: bool

    @classmethod
    def of(cls, program: Program, loss: Loss, rank: int) -> "_Training":
        module, calibration = program.module(), program.fact(Calibration)
        aliases = {program.name(alias): alias for alias, _ in module.named_parameters(remove_duplicate=False)}
        names = {name for name, shape in program.shapes().items() if len(shape) == 1} & program.parameters
        weights = watched(module, program, names)
        for weight in weights.values():
            weight.data = weight.data.clone()  # those of the program must not change
        layers = [name for name in sorted(_unshared(program) - lowered(program)) if rank and name in aliases]
        updates = {name: LowRankUpdate(module.get_parameter(aliases[name]).detach(), rank, 0) for name in layers}
        held = [i for i in range(len(calibration.batches)) if calibration.held_out(i)]
        fitted = [i for i in range(len(calibration.batches)) if i not in held]
        return cls(
            module, _caller(program), loss, weights, updates, aliases, fitted, held or fitted, calibration.autocast
        )

    def run(self, steps: int, rate: float) -> dict[str, Tensor]:
        """The best weights by the loss on held-out batches."""
        factors = chain.from_iterable(update.parameters() for update in self.updates.values())
        optimizer = torch.optim.AdamW([*self.weights.values(), *factors], rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, max(steps, 1), pct_start=WARM, div_factor=1 / WARM, cycle_momentum=False
        )
        lowest, best = self.held_out_loss(), self.state()
        every = max(1, steps // CHECKS)
        with progress("tuning", steps) as step, torch.enable_grad():
            for i in range(steps):
                optimizer.zero_grad()
                self.batch_loss(self.fitted[i % len(self.fitted)]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                step()
                if (i + 1) % every == 0 and (now := self.held_out_loss()) < lowest:
                    lowest, best = now, self.state()
        return best

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss on held-out batches."""
        loss = torch.stack([self.batch_loss(i) for i in self.held]).mean()
        if not torch.isfinite(loss):
            raise CalibrationError("the loss is not finite on held-out batches; choose a lower rate")
        return float(loss)

    def state(self) -> dict[str, Tensor]:
        """Copies of the weights, with merged updates."""
        return {name: weight.detach().clone() for name, weight in {**self.weights, **self.merged()}.items()}

    def batch_loss(self, i: int) -> Tensor:
        """The loss on a batch."""
        swapped = {self.aliases[name]: weight for name, weight in self.merged().items()}
        with matmul_autocast(self.autocast):
            return self.loss(self.call(self.module, i, swapped), i)

    def merged(self) -> dict[str, Tensor]:
        """The weights that have an update, with the update added."""
        return {name: update(self.module.get_parameter(self.aliases[name])) for name, update in self.updates.items()}


def _unshared(program: Program) -> set[str]:
    """The unshared weights of linear layers, and the factors of factorized ones."""
    consumers = program.fact(Rewritten).original.fact(Dependencies).consumers
    readers = new_biases.count_readers(program)
    factored = program.facts.get(Factored)
    factors = program.parameters - factored.original.parameters if factored else set[str]()
    return {c.weight for c in consumers if readers[c.weight] == 1} | factors
