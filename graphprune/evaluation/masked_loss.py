"""Loss of a pruned model without cutting it: zeros at the removed indices have the same effect."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.groups import Dependencies
from graphprune.display.progress import no_progress
from graphprune.errors import CalibrationError
from graphprune.evaluation.perplexity import negative_log_likelihood
from graphprune.execution.segments import Constants, Segment, load_weights, run, split, split_at_linear_layers
from graphprune.ir.program import Program
from graphprune.ir.weights import Layered, Masked, Weights
from graphprune.planning.plan import Rows, by_parameter, primes_to_keep
from graphprune.planning.refused_choices import refusing
from graphprune.statistics.collector import Calibration, input_leaf, predicted_inputs
from graphprune.statistics.stream import NOTHING
from graphprune.support.workspace import new_activations

MAX_BATCHES = 4  # for one measurement of the loss
CHECKPOINTS = 16  # approximate number of segments of the dense model from which a run may start

Outputs = dict[int, Tensor]  # by position among all outputs


@dataclass(frozen=True)
class Objective:
    """Loss of a model on held-out calibration inputs, which no refit is fitted to.

    For a causal language model it is the mean negative log likelihood of the next token, in nats; for any other model
    the squared error of its outputs, relative to those of the dense model. A plan is evaluated with zeros at the
    removed indices, which equals a cut for exact and rescaled groups, and with a router that never chooses removed
    experts, which equals a cut, too; it approximates the cut of other groups.
    """

    program: Program
    batches: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, program: Program, most: int = MAX_BATCHES) -> "Objective":
        """Objective on at most so many held-out batches of the program's calibration.

        A language model runs one window of text at a time, since logits of a large vocabulary would fill the memory.

        Raises:
            CalibrationError: if there is no calibration.
        """
        calibration = program.facts.get(Calibration)
        if calibration is None:
            raise CalibrationError("plans can only be tried on calibration data; put calibrate before this pass")
        indices = range(len(calibration.batches))
        chosen = ([i for i in indices if calibration.held_out(i)] or indices)[:most]
        by_window = cls(program, [window for i in chosen for window in calibration.windows(i)])
        return by_window if by_window.is_language_model else cls(program, [calibration.batches[i] for i in chosen])

    @cached_property
    def dense(self) -> float:
        """Loss of the dense model."""
        return self._mean(self._dense.losses)

    def loss(self, groups: Mapping[str, Rows], refitted: Weights = NOTHING) -> float:
        """Loss when groups retain only these rows of indices, with `refitted` weights in their old shapes."""
        dependencies = self.program.fact(Dependencies)
        routed = {name: rows for name, rows in groups.items() if dependencies.by_name[name].routed}
        zeros = {name: rows for name, rows in groups.items() if name not in routed}
        keep = by_parameter(dependencies, primes_to_keep(dependencies, zeros))
        places = {place.parameter for name in routed for place in dependencies.by_name[name].places}
        first = self.first_segment(keep.keys() | places)
        if first == len(self.segments):
            return self.dense
        whole = refusing(self.program, routed) if routed else self.program
        segments = split_at_linear_layers(whole) if routed else self.segments
        first = first if len(segments) == len(self.segments) else 0
        weights = Layered((Masked(refitted, keep), Masked(self.program.weights, keep)))
        masked = replace(whole, weights=weights)
        return self._mean(self._judged(_run(masked, segments, self._known, *self._start(first))))

    def first_segment(self, names: Collection[str]) -> int:
        """Index of the first segment that reads one of these parameters; the number of segments if none does."""
        readers = (i for i, segment in enumerate(self.segments) if not segment.weights(self.program).isdisjoint(names))
        return next(readers, len(self.segments))

    @torch.no_grad()
    def losses_from(self, start: int, entries: Sequence[Any], trials: Sequence["ChangedWeights"]) -> list[float]:
        """Losses of models with changed weights, for batches whose inputs of segment `start` are `entries`.

        All models run a segment before the next one is loaded.
        """
        leaves, last = _leaves(self.program), len(self.segments) - 1
        states = [list(entries) for _ in trials]
        outputs = [[Outputs() for _ in entries] for _ in trials]
        parts: list[list[tuple[float, int]]] = [[] for _ in trials]
        for at, segment in enumerate(self.segments[start:], start):
            dense = load_weights(segment, self.program, self.program.weights)
            for t, trial in enumerate(trials):
                loaded = {name: trial.weights[name] if name in trial.names else dense[name] for name in dense}
                for i, known in enumerate(self._known):
                    states[t][i], seen = run(segment, self.program, loaded, known, states[t][i], leaves)
                    outputs[t][i] |= _outputs(segment, leaves, seen)
                    if at == last:  # at once, since logits of a large vocabulary would fill the memory
                        parts[t].append(self._judge(i, outputs[t][i]))
                        outputs[t][i] = {}
        return [self._mean(part) for part in parts]

    def loss_of(self, program: Program, step: Callable[..., None] = no_progress) -> float:
        """Loss of another program with the same inputs and outputs; `step` is called after each batch."""
        whole = split(program, frozenset())
        constants = Constants(program)
        known = [constants.of(leaves) for leaves in self.batches]
        parts = []
        for part in self._judged(_run(program, whole, known)):
            parts.append(part)
            step()
        return self._mean(parts)

    @cached_property
    def is_language_model(self) -> bool:
        """Whether the model is a causal language model: its logits predict the next token from the tokens up to it."""
        name = predicted_inputs(self.program)[0]
        if name not in self.program.inputs[1]:
            return False
        logits, ids = self._logits(self.batches[0]), self._leaf(0, name)
        if ids is None or ids.dim() != 2 or logits.dim() != 3 or logits.shape[:2] != ids.shape:
            return False
        other = torch.cat([ids[:, :-1], (ids[:, -1:] == 0).to(ids)], 1)
        leaves = [other if leaf is ids else leaf for leaf in self.batches[0]]
        windows = zip(self._logits(leaves)[:, :-1], logits[:, :-1], strict=True)  # whole logits would fill the memory
        causal = all(torch.allclose(new, old, rtol=1e-4, atol=1e-4) for new, old in windows)
        return causal and logits.shape[2] > int(ids.max())

    def _logits(self, leaves: Sequence[Any]) -> Tensor:
        """First output of the dense model for a batch."""
        return _first(next(_run(self.program, self.segments, [self._constants.of(leaves)]), Outputs()))

    @staticmethod
    def _mean(parts: Iterable[tuple[float, int]]) -> float:
        pairs = list(parts)
        return sum(total for total, _ in pairs) / max(sum(count for _, count in pairs), 1)

    def _judged(self, runs: Iterator[Outputs]) -> Iterator[tuple[float, int]]:
        """Summed loss of each batch, and the number of its terms; no outputs are held while the next are computed."""
        return (self._judge(i, next(runs)) for i in range(len(self.batches)))

    def _judge(self, i: int, outputs: Outputs) -> tuple[float, int]:
        """Summed loss of batch `i`, and the number of its terms."""
        if self.is_language_model:
            ids, mask = (self._leaf(i, name) for name in predicted_inputs(self.program))
            assert ids is not None
            return _likelihood(_first(outputs), ids, mask)
        old = self._dense.outputs[i]
        return sum(_error(new, old[at]) for at, new in outputs.items()), len(old)

    def _leaf(self, i: int, name: str) -> Tensor | None:
        """Input of this name in batch `i`."""
        leaf: Tensor | None = input_leaf(self.program, self.batches[i], name)
        return leaf

    @cached_property
    def segments(self) -> list[Segment]:
        """Segments of the dense graph."""
        return split_at_linear_layers(self.program)

    @cached_property
    def _known(self) -> list[dict[str, Any]]:
        return [self._constants.of(leaves) for leaves in self.batches]

    @cached_property
    def _constants(self) -> Constants:
        return Constants(self.program)

    @cached_property
    def _dense(self) -> "_Dense":
        """Results of the dense model."""
        step, count = len(self.segments) // CHECKPOINTS + 1, len(self.segments)
        entries: dict[int, Sequence[Any]] = dict.fromkeys(range(step, count, step), ())
        runs = _run(self.program, self.segments, self._known, entries=entries)
        if self.is_language_model:  # with whose outputs nothing is compared
            return _Dense([], entries, list(self._judged(runs)))
        outputs = list(runs)
        return _Dense(outputs, entries, [(0.0, len(of_batch)) for of_batch in outputs])

    def _start(self, first: int) -> tuple[int, Sequence[Any]]:
        """Last stored start up to segment `first`, and the values that enter it in every batch."""
        entries = self._dense.entries
        at = max((start for start in entries if start <= first), default=0)
        return at, entries.get(at, ())


@dataclass(frozen=True)
class ChangedWeights:
    """Weights that differ from those of the dense model in `names`."""

    weights: Weights
    names: Collection[str]


@dataclass(frozen=True)
class _Dense:
    """Results of the dense model on every batch.

    They are outputs, if others are compared with them, inputs of some segments by index, and the summed losses with the
    numbers of their terms.
    """

    outputs: Sequence[Outputs]
    entries: Mapping[int, Sequence[Any]]
    losses: Sequence[tuple[float, int]]


@torch.no_grad()
def _run(
    program: Program, segments: Sequence[Segment], known: Sequence[Mapping[str, Any]], start: int = 0,
    states: Sequence[Any] = (), entries: dict[int, Sequence[Any]] | None = None,
) -> Iterator[Outputs]:  # fmt: skip
    """Run all batches through the segments from `start` on, which `states` enter; yield the outputs of each batch.

    The values that enter the segments of `entries` are stored there. The weights of a segment are loaded once.
    """
    leaves, outputs = _leaves(program), {i: Outputs() for i in range(len(known))}
    states = states or [None] * len(known)
    for at, segment in enumerate(segments[start:], start):
        if entries is not None and at in entries:
            entries[at] = states
        loaded, exits = load_weights(segment, program, program.weights), new_activations()
        for i, constants in enumerate(known):
            value, seen = run(segment, program, loaded, constants, states[i], leaves)
            outputs[i] |= _outputs(segment, leaves, seen)
            if segment is not segments[-1]:
                exits.append(value)
                continue
            del value, seen  # logits of a large vocabulary would fill the memory
            yield outputs.pop(i)
        states = exits


def _leaves(program: Program) -> list[str]:
    """Names of the nodes of all outputs; empty where an output is no node."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    return [leaf.name if isinstance(leaf, fx.Node) else "" for leaf in pytree.tree_leaves(output.args)]


def _outputs(segment: Segment, leaves: Sequence[str], seen: Mapping[str, Any]) -> Outputs:
    """Outputs of the program among the values that a segment computed."""
    values = {at: seen[name] for at, name in enumerate(leaves) if name in segment.names}
    return {at: v for at, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}


def _first(outputs: Outputs) -> Tensor:
    """First output, which is the logits of a language model."""
    return outputs[min(outputs)] if outputs else torch.zeros(())


def _likelihood(logits: Tensor, ids: Tensor, mask: Tensor | None) -> tuple[float, int]:
    """Summed negative log likelihood of all tokens except the first, in nats, and the number of these tokens."""
    seen = torch.ones_like(ids) if mask is None or mask.shape != ids.shape else mask
    attended = seen[:, 1:] != 0
    windows = zip(logits[:, :-1], ids[:, 1:], attended, strict=True)
    return sum(negative_log_likelihood(row[kept], target[kept]) for row, target, kept in windows), int(attended.sum())


def _error(new: Tensor, old: Tensor) -> float:
    """Squared error relative to the squares of the dense output."""
    return float((new - old).double().square().sum() / old.double().square().sum().clamp(min=1e-30))
