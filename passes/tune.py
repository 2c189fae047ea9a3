"""The pass that trains a pruned model a little: its biases and the weights of its norms, and nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.calibration import Calibration
from graphprune.errors import CalibrationError
from graphprune.facts import Refits
from graphprune.objective import Objective
from graphprune.passes.gradients import Loss, likelihood
from graphprune.pipeline import PASSES, Pass
from graphprune.program import Program, Rewritten
from graphprune.progress import progress
from graphprune.weights import Layered

CHECKS = 10  # times that the loss is measured on held-out batches


@PASSES.register("tune")
@dataclass(frozen=True)
class Tune(Pass):
    """Take `steps` of AdamW on all parameters of one dimension: biases and norms (PERP, arXiv:2312.15230).

    A step sees one calibration batch; its length follows a cosine from `rate` to 0. The loss is `loss`, given from
    Python, or that of the next token for causal language models, or else the squared error of the outputs, relative to
    those of the dense model. What was best on held-out batches is kept, the start included.
    """

    name: ClassVar[str] = "tune"
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration)
    makes: ClassVar[tuple[type, ...]] = (Refits,)
    steps: int = 100
    rate: float = 1e-3
    loss: Loss | None = field(default=None, repr=False)

    def run(self, program: Program) -> Program:
        """The program with trained biases and norms.

        Raises:
            CalibrationError: if the loss is not finite.
        """
        names = {name for name, shape in program.shapes().items() if len(shape) == 1} & program.parameters
        training = _Training.of(program, self.loss or known_loss(program), names)
        best = training.run(self.steps, self.rate) if training.weights else {}
        refits = program.facts.get(Refits) or Refits({}, {}, program.weights)
        tuned = tuple(sorted({*refits.tuned, *best}))
        return program.with_facts(replace(refits, tuned=tuned), weights=Layered((best, program.weights)))


def known_loss(program: Program) -> Loss:
    """The loss of the next token, or for what is no causal language model the distance to the dense model."""
    original, calibration = program.fact(Rewritten).original, program.fact(Calibration)
    original = original.with_facts(calibration)
    if Objective.of(original).predicts:
        return likelihood(original)
    dense, call = original.module(), _caller(original)

    def distance(output: Any, i: int) -> Tensor:
        with torch.no_grad():
            wanted = [leaf for leaf in pytree.tree_leaves(call(dense, i)) if _is_number(leaf)]
        pairs = zip((leaf for leaf in pytree.tree_leaves(output) if _is_number(leaf)), wanted, strict=True)
        parts = [(got - want).square().sum() / want.square().sum().clamp(min=1e-12) for got, want in pairs]
        return torch.stack(parts).mean()

    return distance


def _is_number(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _caller(program: Program) -> Callable[[fx.GraphModule, int], Any]:
    """Calls a module like the program with the inputs of a calibration batch."""
    batches = program.fact(Calibration).batches
    spec = pytree.tree_flatten((program.inputs[0], dict(program.inputs[1])))[1]

    def call(module: fx.GraphModule, i: int) -> Any:
        args, kwargs = pytree.tree_unflatten(list(batches[i]), spec)
        return module(*args, **kwargs)

    return call


@dataclass
class _Training:
    """A module of which some weights are trained on some batches, and judged on others."""

    module: fx.GraphModule
    call: Callable[[fx.GraphModule, int], Any]
    loss: Loss
    weights: Mapping[str, Tensor]
    seen: list[int]
    held: list[int]

    @classmethod
    def of(cls, program: Program, loss: Loss, names: set[str]) -> "_Training":
        module, calibration = program.module(), program.fact(Calibration)
        found = {program.name(alias): weight for alias, weight in module.named_parameters(remove_duplicate=False)}
        for name, weight in found.items():
            weight.requires_grad_(name in names and weight.is_floating_point())
        weights = {name: found[name] for name in sorted(names) if name in found and found[name].requires_grad}
        for weight in weights.values():
            weight.data = weight.data.clone()  # the program's own stay as they are
        held = [i for i in range(len(calibration.batches)) if calibration.held_out(i)]
        seen = [i for i in range(len(calibration.batches)) if i not in held]
        return cls(module, _caller(program), loss, weights, seen, held or seen)

    def run(self, steps: int, rate: float) -> dict[str, Tensor]:
        """The best weights by the loss on held-out batches."""
        optimiser = torch.optim.AdamW(self.weights.values(), lr=rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
        lowest, best = self.judge(), self.state()
        every = max(1, steps // CHECKS)
        with progress("tuning", steps) as step, torch.enable_grad():
            for i in range(steps):
                optimiser.zero_grad()
                loss = self.loss(self.call(self.module, self.seen[i % len(self.seen)]), self.seen[i % len(self.seen)])
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                step()
                if (i + 1) % every == 0 and (now := self.judge()) < lowest:
                    lowest, best = now, self.state()
        return best

    @torch.no_grad()
    def judge(self) -> float:
        """The mean loss on held-out batches."""
        found = torch.stack([self.loss(self.call(self.module, i), i) for i in self.held]).mean()
        if not torch.isfinite(found):
            raise CalibrationError("the loss is not finite on held-out batches; choose a lower rate")
        return float(found)

    def state(self) -> dict[str, Tensor]:
        """Copies of the weights."""
        return {name: weight.detach().clone() for name, weight in self.weights.items()}
