"""Training of a student on batches: steps of AdamW, measurements of the held-out loss, and checkpoints."""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.display.progress import progress as shown
from graphprune.errors import CalibrationError, OptionError
from graphprune.execution.module_state import seeded
from graphprune.healing.data.examples import Batch, Examples
from graphprune.healing.losses import HealingLoss
from graphprune.healing.teacher import Teacher
from graphprune.healing.trained_weights import TrainedWeights
from graphprune.healing.training_state import (
    Measurement,
    Progress,
    Snapshot,
    Tensors,
    moments_of,
    restore,
    set_moments,
    store,
)
from graphprune.statistics.collector import matmul_autocast
from graphprune.support import distributed
from graphprune.support.packages import accelerate
from graphprune.support.workspace import Workspace

SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  # as accelerate names them in the environment
CLIP = 1.0  # the greatest norm of all gradients
FLOOR = 0.1  # share of the rate at which it starts to rise
log = logging.getLogger("graphprune.run")


@dataclass(frozen=True)
class Schedule:
    """Steps of a training, the rate of each, and when the held-out loss is measured."""

    steps: int
    rate: float
    warmup: float = 0.1
    evaluations: int = 20
    patience: int | None = None

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: it rises linearly, then falls to 0 as a cosine."""
        rising = max(1, math.ceil(self.warmup * self.steps))
        if step < rising:
            return self.rate * (FLOOR + (1 - FLOOR) * (step + 1) / rising)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step + 1 - rising) / max(1, self.steps - rising + 1)))

    def measures(self, step: int) -> bool:
        """Whether the held-out loss is measured after so many steps; always after the last."""
        every = -(-self.steps // self.evaluations)
        return step == self.steps or step % every == 0


@dataclass(frozen=True)
class Outcome:
    """Result of a training: the best weights, its course, and the number of parameters that were trained."""

    best: Tensors
    progress: Progress
    trained: int


@dataclass
class Trainer:
    """Training of the weights of a student.

    The student runs in training mode. Random numbers are seeded anew for every step, so that a training that continues
    draws what an uninterrupted one does. The result is the best weights on held-out batches, which may be the initial
    ones; the last weights if there are no held-out batches.
    """

    student: nn.Module
    weights: TrainedWeights
    examples: Examples
    loss: HealingLoss
    schedule: Schedule
    teacher: Teacher | None = None
    seed: int = 0
    autocast: bool = False
    device: str = "cpu"
    total: int = 0  # tokens, for the remaining time
    workspace: Workspace | None = None

    def run(self) -> Outcome:
        """Train, from the last checkpoint on if there is one.

        Raises:
            CalibrationError: if a loss is not finite.
            WorkspaceError: if a checkpoint cannot be written or read, or another process has ended.
        """
        with distributed.failure_reported(only_of_others=True), _accelerated(self.device) as session:
            return self._run(session)

    def _run(self, session: Any) -> Outcome:
        parameters = self.weights.parameters()
        self.student.to(session.device).train()
        if self.teacher is not None:
            self.teacher.model.to(session.device).eval()
        optimizer = torch.optim.AdamW(parameters, self.schedule.rate, weight_decay=0.0)
        known = restore(self.workspace.folder.parent / "0") if self.workspace is not None else None
        model = session.prepare_model(self.student)
        if known is None:
            held = self._measure(session, 0)
            state = Progress().measured(Measurement(0, 0, None, held, 0.0))
            best = self.weights.state()
        else:
            state, best = known.progress, known.best
            self.weights.load(known.weights)
            set_moments(optimizer, known.moments)
        with shown("healing", self.total, unit=self.examples.unit, initial=state.tokens) as advance:
            return self._train(session, model, optimizer, state, best, advance)

    def _train(
        self, session: Any, model: nn.Module, optimizer: Any, state: Progress, best: Tensors, advance: Any
    ) -> Outcome:
        share = range(session.process_index, session.num_processes)
        losses: list[float] = []
        start = time.perf_counter()
        batches = self.examples.steps(state.step, share)
        while state.step < self.schedule.steps and not self._is_over(state):
            rate = self.schedule.rate_at(state.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, tokens = self._step(session, model, optimizer, next(batches), state.step)
            losses.append(loss)
            advance(tokens)
            state = replace(state, step=state.step + 1, tokens=state.tokens + tokens)
            if self.schedule.measures(state.step):
                state = replace(state, seconds=state.seconds + time.perf_counter() - start)
                held = self._measure(session, state.step)
                mean = math.fsum(losses) / len(losses)
                state = state.measured(Measurement(state.step, state.tokens, mean, held, rate))
                log.info("step %d: loss %.4f, held out %s", state.step, mean, "-" if held is None else f"{held:.4f}")
                losses = []
                best = self.weights.state() if state.best == state.step else best
                self._store(session, optimizer, state, best)
                start = time.perf_counter()
        return Outcome(best, state, sum(weight.numel() for weight in self.weights.parameters()))

    def _is_over(self, state: Progress) -> bool:
        return self.schedule.patience is not None and state.waited >= self.schedule.patience

    def _step(self, session: Any, model: nn.Module, optimizer: Any, parts: list[Batch], step: int) -> tuple[float, int]:
        """One step: its mean loss and its tokens, over all processes."""
        optimizer.zero_grad(set_to_none=True)
        total, tokens = torch.zeros((), device=session.device), 0
        draw = (self.seed * 1_000_003 + step * session.num_processes + session.process_index) % 2**32
        with seeded(draw), torch.enable_grad():
            for number, part in enumerate(parts):
                last = number == len(parts) - 1
                with nullcontext() if last else session.no_sync(model):
                    loss = self._batch_loss(model, part.to(session.device)) / len(parts)
                    session.backward(loss)
                total += loss.detach()
                tokens += part.tokens
        both = session.reduce(torch.stack([total.double().cpu(), torch.tensor(float(tokens), dtype=torch.float64)]).to(
            session.device), "sum")  # fmt: skip
        mean = float(both[0]) / session.num_processes
        if not math.isfinite(mean):
            first = "the data hold what the models cannot take, or the models are damaged"
            why = f"choose a rate below {self.schedule.rate:g}" if step else first
            raise CalibrationError(f"the loss of step {step + 1} is {mean}: {why}; nothing was written")
        torch.nn.utils.clip_grad_norm_(self.weights.parameters(), CLIP)
        optimizer.step()
        return mean, int(both[1])

    def _batch_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        reference = self.teacher.reference(batch) if self.teacher is not None else None
        options = {"output_hidden_states": True} if self.loss.aim == "hidden" else {}
        with matmul_autocast(self.autocast, _device_of(self.student)):
            output = self.examples.output(model, batch, **options)
        return self.loss(output, batch, reference)

    @torch.no_grad()
    def _measure(self, session: Any, step: int) -> float | None:
        """Mean loss on held-out batches after a step, weighted by their tokens; None if there are none."""
        sums = torch.zeros(2, dtype=torch.float64)
        self.student.eval()
        with seeded(self.seed):
            for number, batch in enumerate(self.examples.held_out()):
                if number % session.num_processes == session.process_index:
                    loss = self._batch_loss(self.student, batch.to(session.device))
                    sums += torch.tensor([float(loss) * batch.tokens, batch.tokens], dtype=torch.float64)
        self.student.train()
        sums = session.reduce(sums.to(session.device), "sum").cpu()
        if not sums[1]:
            return None
        mean = float(sums[0] / sums[1])
        if not math.isfinite(mean):
            first = "it is so before the training: the data hold what the models cannot take, or a model is damaged"
            raise CalibrationError(f"the loss on held-out data is {mean}; {'choose a lower rate' if step else first}")
        return mean

    def _store(self, session: Any, optimizer: Any, state: Progress, best: Tensors) -> None:
        if self.workspace is None:
            return
        if session.process_index == 0:
            store(self.workspace, Snapshot(state, self.weights.state(), best, moments_of(optimizer)))
        else:
            self.workspace.finished += 1
        distributed.barrier()


def _device_of(module: nn.Module) -> str:
    return next(module.parameters()).device.type


@contextmanager
def _accelerated(device: str) -> Iterator[Any]:
    """Session of accelerate for the block; afterwards its global state is as it was before.

    Raises:
        OptionError: if processes share weights in a way that this training does not know.
    """
    with ExitStack() as after:
        if not accelerate.state.PartialState._shared_state:
            after.callback(accelerate.state.AcceleratorState._reset_state, True)
        unused = accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)
        session = accelerate.Accelerator(cpu=device == "cpu", kwargs_handlers=[unused])
        kind = str(session.distributed_type).rpartition(".")[2]
        ignored = [name for name in SHARDING if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1")]
        if ignored or kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):  # on processors, accelerate itself ignores them
            raise OptionError(
                f"accelerate is configured for {', '.join(ignored) or kind}; healing runs on one device, or on several "
                "with all weights on each: start it with torchrun"
            )
        yield session
