"""The pass that refits the last norm of a causal language model to the predictions of the dense model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.evaluation.masked_loss import Objective
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import Layered
from graphprune.passes.reconstructions.output_tail import OutputTail, TailInputs
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Refits, RefittedNorm
from graphprune.statistics.collector import Calibration
from graphprune.support import distributed

DAMPINGS = (0.03, 0.3, 3.0)  # relative to the diagonal of the Fisher information
LEAST = 1e-6  # nats per token that a step must gain
ROWS = 64  # tokens at a time, since probabilities of a large vocabulary would fill the memory
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

    About so many `tokens` of the calibration are used, and a quarter as many that are held out.
    """

    name: ClassVar[str] = "last-norm"
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Refits,)
    makes: ClassVar[tuple[type, ...]] = (Refits, RefittedNorm)
    tokens: int = 16384

    def check(self) -> None:
        """Refuse an impossible number of tokens.

        Raises:
            CalibrationError: if it is.
        """
        if self.tokens < 1:
            raise CalibrationError(f"tokens must be a positive number of calibration tokens, got {self.tokens}")

    def run(self, program: Program) -> Program:
        """The program with new parameters of its last norm.

        Raises:
            CalibrationError: if predictions are not finite.
        """
        changed, fact = self._refitted(program)
        refits = program.facts.get(Refits) or Refits({}, {}, program.weights)
        refits = replace(refits, tuned=tuple(sorted({*refits.tuned, *changed})))
        return program.with_facts(refits, fact, weights=Layered((changed, program.weights)))

    def _refitted(self, program: Program) -> tuple[Parameters, RefittedNorm]:
        """The new parameters by name, and what they change."""
        original, calibration = program.fact(Rewritten).original, program.fact(Calibration)
        if not Objective.of(original.with_facts(calibration)).is_language_model:
            return {}, RefittedNorm()
        linear = {consumer.node for consumer in original.fact(Dependencies).consumers}
        dense, pruned = OutputTail.of(original, linear), OutputTail.of(program, linear)
        if dense is None or pruned is None:
            return {}, RefittedNorm(left="no norm with parameters of its own is before the output layer")
        fit, check = _windows(calibration, self.tokens)
        if not check:
            return {}, RefittedNorm(left="no calibration window is held out; pass at least two samples")
        windows = replace(calibration, batches=[*fit, *check])
        count = len(distributed.batches_of_process(len(windows.batches)))
        with progress("refitting the last norm", count * (len(dense.body) + len(pruned.body) + 1)) as step:
            return _Newton(dense.start(windows, step), pruned.start(windows, step), len(fit), step).outcome()


def _windows(calibration: Calibration, tokens: int) -> tuple[list[Sequence[Any]], list[Sequence[Any]]]:
    """Calibration inputs to fit to, and held-out ones: single windows of a text, otherwise whole batches."""
    parts: tuple[list[Sequence[Any]], list[Sequence[Any]]] = ([], [])
    for i, leaves in enumerate(calibration.batches):
        rows = len(leaves[0]) if calibration.length else 0
        single: list[Sequence[Any]] = [[leaf[at : at + 1] for leaf in leaves] for at in range(rows)]
        parts[calibration.held_out(i)].extend(single or [leaves])
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
            random = torch.Generator(logits.device).manual_seed(self.pruned.stream.batch_indices[i])
            excess, drawn = _logit_slopes(self.dense.logits(i), logits.detach(), random)
            slopes, each = (self._slopes(logits, rows, one) for one in (excess, drawn))
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
            total += torch.stack([_divergence(dense, self.pruned.logits(i, trial)) for trial in trials]).cpu()
            tokens += len(dense)
            self.step()
        summed = distributed.all_reduce_sum([total, tokens], 2)
        assert summed is not None
        return summed[0] / summed[1]

    def _indices(self, held_out: bool) -> list[int]:
        numbers = self.pruned.stream.batch_indices
        return [i for i, number in enumerate(numbers) if (number >= self.fitted) == held_out]

    @staticmethod
    def _slopes(logits: Tensor, rows: Parameters, slopes: Tensor) -> Tensor:
        """Derivatives by the parameters of each token, shape (tokens, n), from those by the logits."""
        found = torch.autograd.grad(logits, list(rows.values()), slopes.to(logits), retain_graph=True)
        return torch.cat([slope.flatten(0, -2) for slope in found], 1).double().cpu()


def _logit_slopes(dense: Tensor, pruned: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Derivatives by the pruned logits, shape (tokens, vocabulary): of the divergence, and of the negative log
    likelihood of a token drawn from each prediction."""
    excess, drawn = torch.empty_like(pruned), torch.empty_like(pruned)
    parts = (torch.split(one, ROWS) for one in (dense, pruned, excess, drawn))
    for old, new, part, other in zip(*parts, strict=True):
        probabilities = new.float().softmax(-1)
        part.copy_(probabilities - old.float().softmax(-1))
        token = torch.multinomial(probabilities, 1, generator=random)
        other.copy_(probabilities.scatter_add_(1, token, -torch.ones_like(token, dtype=torch.float32)))
    return excess, drawn


def _divergence(dense: Tensor, pruned: Tensor) -> Tensor:
    """Kullback-Leibler divergence summed over tokens, of logits of shape (tokens, vocabulary)."""
    total = torch.zeros((), dtype=torch.float64, device=dense.device)
    for old, new in zip(torch.split(dense, ROWS), torch.split(pruned, ROWS), strict=True):
        a, b = (one.float().log_softmax(-1) for one in (old, new))
        total += (a.exp() * (a - b)).sum()
    return total


def _moved(start: Parameters, step: Tensor) -> Parameters:
    """Parameters after a step downwards."""
    parts = torch.split(step, [value.numel() for value in start.values()])
    return {name: value - part.to(value) for (name, value), part in zip(start.items(), parts, strict=True)}
