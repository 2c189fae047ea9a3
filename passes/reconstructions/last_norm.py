"""The pass that refits the last norm of a causal language model to the predictions of the dense model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from graphprune.axes.groups import Dependencies
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.evaluation.masked_loss import Objective
from graphprune.evaluation.teacher_distance import ROWS, divergence
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.reconstructions.output_tail import OutputTail, TailInputs
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Refits, RefittedNorm, with_tuned
from graphprune.statistics.collector import Calibration
from graphprune.support import distributed

DAMPINGS = (0.03, 0.3, 3.0)  # relative to the diagonal of the Fisher information
LEAST = 1e-6  # nats per token that a step must gain
Parameters = dict[str, Tensor]


@PASSES.register("last-norm")
@dataclass(frozen=True)
class LastNorm(Pass):
    """Refit the parameters of the norm before the output layer of a causal language model.

    They make one Newton step on the divergence of the predictions from those of the dense model, which is convex in
    them where only a linear layer follows. The Hessian is the Fisher information, estimated with one token drawn from
    each prediction. It is damped by the multiple of its diagonal with the least divergence on held-out calibration
    windows; if no step lowers that, nothing changes. Refits of single layers do not see the predictions, and what they
    leave makes these too certain. Other models are unchanged.

    About so many tokens of the calibration are used, `most_tokens`, and a quarter as many that are held out.
    """

    name: ClassVar[str] = "last-norm"
    memory_bounded: ClassVar[bool] = True
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Refits,)
    makes: ClassVar[tuple[type, ...]] = (Refits, RefittedNorm)
    most_tokens: int = 16384

    def check(self) -> None:
        """Refuse an impossible number of tokens.

        Raises:
            CalibrationError: if it is.
        """
        if self.most_tokens < 1:
            raise CalibrationError(f"most_tokens must be a positive number, got {self.most_tokens}")

    def run(self, program: Program) -> Program:
        """The program with new parameters of its last norm.

        Raises:
            CalibrationError: if predictions are not finite.
        """
        changed, fact = self._refitted(program)
        return with_tuned(program, changed).with_facts(fact)

    def _refitted(self, program: Program) -> tuple[Parameters, RefittedNorm]:
        """The new parameters by name, and what they change."""
        original, calibration = program.fact(Rewritten).original, program.fact(Calibration)
        if not Objective.of(original.with_facts(calibration)).is_language_model:
            return {}, RefittedNorm()
        linear = {consumer.node for consumer in original.fact(Dependencies).consumers}
        dense, pruned = OutputTail.of(original, linear), OutputTail.of(program, linear)
        if dense is None or pruned is None:
            return {}, RefittedNorm(left="no norm with parameters of its own is before the output layer")
        fit, check = _windows(calibration, self.most_tokens)
        if not check:
            return {}, RefittedNorm(left="no calibration window is held out; pass at least two samples")
        windows = replace(calibration, batches=[*fit, *check])
        count = len(distributed.batches_of_process(len(windows.batches)))
        with progress("refitting the last norm", count * (len(dense.body) + len(pruned.body) + 1)) as step:
            return _Newton(dense.start(windows, step), pruned.start(windows, step), len(fit), step).outcome()


def _windows(calibration: Calibration, tokens: int) -> tuple[list[Sequence[Any]], list[Sequence[Any]]]:
    """Calibration inputs to fit to, and held-out ones: single windows of a text, otherwise whole batches."""
    parts: tuple[list[Sequence[Any]], list[Sequence[Any]]] = ([], [])
    for i in range(len(calibration.batches)):
        parts[calibration.held_out(i)].extend(calibration.windows(i))
    most = max(1, tokens // (calibration.length or 1))
    return parts[0][:most], parts[1][: max(1, most // 4)]


@dataclass(frozen=True)
class _Newton:
    """The tails of both models at the same windows, of which the first `fitted` are fitted to, and others held out.

    `step` is called after each window.
    """

    dense: TailInputs
    pruned: TailInputs
    fitted: int
    step: Callable[[], None]

    def outcome(self) -> tuple[Parameters, RefittedNorm]:
        """The new parameters by name, in their types, and the divergences; none if no step lowers that."""
        old = self.pruned.values()
        start = {name: value.float() for name, value in old.items()}
        gradient, information = self._sums(start)
        diagonal = torch.diag(information.diagonal())
        steps = [torch.linalg.lstsq(information + d * diagonal, gradient[:, None]).solution[:, 0] for d in DAMPINGS]
        trials = [start, *(_moved(start, step) for step in steps)]
        divergences = self._divergences(trials)
        if not divergences.isfinite().all():
            raise CalibrationError("the predictions hold NaN or infinity; check the model and the calibration data")
        best = int(divergences.argmin())
        if divergences[best] > divergences[0] - LEAST:
            return {}, RefittedNorm(left="no step lowers the divergence from the dense predictions")
        changed = {name: value.to(old[name].dtype) for name, value in trials[best].items()}
        return changed, RefittedNorm(tuple(changed), float(divergences[0]), float(divergences[best]))

    def _sums(self, start: Parameters) -> tuple[Tensor, Tensor]:
        """Gradient of the divergence by all parameters, shape (n,), and their Fisher information, shape (n, n)."""
        totals: list[Tensor] | None = None
        for i in self._indices(held_out=False):
            rows = self.pruned.rows(i, start)
            with torch.enable_grad():
                logits = self.pruned.logits(i, rows)
                slopes = _slopes(divergence(logits, self.dense.logits(i)) * len(logits), rows)
                each = _slopes(cross_entropy(logits, self._drawn(logits.detach(), i), reduction="sum"), rows)
            new = [slopes.sum(0), each.T @ each]
            totals = new if totals is None else [a + b for a, b in zip(totals, new, strict=True)]
            self.step()
        summed = distributed.all_reduce_sum(totals, 2)
        assert summed is not None
        return summed[0], summed[1]

    def _divergences(self, trials: Sequence[Parameters]) -> Tensor:
        """Mean divergence of a token of held-out windows for each trial, shape (trials,)."""
        total, tokens = torch.zeros(len(trials), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for i in self._indices(held_out=True):
            dense = self.dense.logits(i)
            means = torch.stack([divergence(self.pruned.logits(i, trial), dense) for trial in trials])
            total += means.double().cpu() * len(dense)
            tokens += len(dense)
            self.step()
        summed = distributed.all_reduce_sum([total, tokens], 2)
        assert summed is not None
        return summed[0] / summed[1]

    def _indices(self, held_out: bool) -> list[int]:
        numbers = self.pruned.stream.batch_indices
        return [i for i, number in enumerate(numbers) if (number >= self.fitted) == held_out]

    def _drawn(self, logits: Tensor, i: int) -> Tensor:
        """A token drawn from each prediction, shape (tokens,)."""
        random = torch.Generator(logits.device).manual_seed(self.pruned.stream.batch_indices[i])
        parts = [torch.multinomial(part.softmax(-1), 1, generator=random) for part in torch.split(logits, ROWS)]
        return torch.cat(parts)[:, 0]


def _slopes(value: Tensor, rows: Parameters) -> Tensor:
    """Derivatives of a value by the parameters of each token, shape (tokens, n)."""
    found = torch.autograd.grad(value, list(rows.values()), retain_graph=True)
    return torch.cat([slope.flatten(0, -2) for slope in found], 1).double().cpu()


def _moved(start: Parameters, step: Tensor) -> Parameters:
    """Parameters after a step downwards."""
    parts = torch.split(step, [value.numel() for value in start.values()])
    return {name: value - part.to(value) for (name, value), part in zip(start.items(), parts, strict=True)}
