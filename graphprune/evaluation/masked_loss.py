"""The loss of a model whose groups are cut, without cutting: zeros at the removed indices say the same."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.groups import Dependencies
from graphprune.errors import CalibrationError
from graphprune.evaluation.perplexity import negative_log_likelihood
from graphprune.execution.segments import Constants, Segment, load_weights, run, split, split_at_linear_layers
from graphprune.ir.program import Program
from graphprune.ir.weights import Masked, Weights
from graphprune.planning.plan import Rows, by_parameter, primes_to_keep
from graphprune.statistics.collector import Calibration, input_leaf

MAX_BATCHES = 4  # on which a loss is measured, at most
CHECKPOINTS = 16  # places in the dense model from which a run may start, about

Outputs = dict[int, Tensor]  # by their place among all outputs


@dataclass(frozen=True)
class Objective:
    """How bad a model gets, on calibration inputs that no refit is fitted to.

    Of a causal language model the loss is the mean negative log likelihood of the next token, in nats; of any other
    model the squared error of its outputs, relative to those of the dense model. A plan is judged with zeros in the
    place of what it removes: the same as a cut of groups that are exact or rescaled, and near it for others.
    """

    program: Program
    batches: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, program: Program) -> "Objective":
        """The objective on held-out batches of the program's calibration.

        Raises:
            CalibrationError: if there is no calibration.
        """
        calibration = program.facts.get(Calibration)
        if calibration is None:
            raise CalibrationError("plans can only be tried on calibration data; put calibrate before this pass")
        held = [leaves for i, leaves in enumerate(calibration.batches) if calibration.held_out(i)]
        return cls(program, (held or list(calibration.batches))[:MAX_BATCHES])

    @cached_property
    def dense(self) -> float:
        """The loss of the model as it is."""
        return self._mean(dense.loss for dense in self._dense)

    def loss(self, groups: Mapping[str, Rows]) -> float:
        """The loss when groups keep these rows of indices, and others everything."""
        dependencies = self.program.fact(Dependencies)
        keep = by_parameter(dependencies, primes_to_keep(dependencies, groups))
        first = self.first_segment(keep)
        if first == len(self.segments):
            return self.dense
        masked = replace(self.program, weights=Masked(self.program.weights, keep))
        found = (_run(masked, self.segments, self._known[i], *self._start(i, first)) for i in range(len(self.batches)))
        return self._mean(self._judge(i, outputs) for i, (outputs, _) in enumerate(found))

    def first_segment(self, names: Collection[str]) -> int:
        """The place of the first segment that reads one of these parameters; behind the last if none does."""
        wanted = set(names)
        found = (i for i, segment in enumerate(self.segments) if segment.weights(self.program) & wanted)
        return next(found, len(self.segments))

    @torch.no_grad()
    def losses_from(self, start: int, entries: Sequence[Any], trials: Sequence["ChangedWeights"]) -> list[float]:
        """The losses of models with other weights, of batches that enter segment `start` as `entries`.

        All go through a segment before the next one is loaded.
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
        return [self._mean(found) for found in parts]

    def loss_of(self, program: Program) -> float:
        """The loss of another program with the same inputs and outputs."""
        whole = split(program, frozenset())
        known = Constants(program)
        found = (_run(program, whole, known.of(leaves)) for leaves in self.batches)
        return self._mean(self._judge(i, outputs) for i, (outputs, _) in enumerate(found))

    @cached_property
    def is_language_model(self) -> bool:
        """Is it a causal language model: does it say for every token, from those up to it, which one is next?"""
        if "input_ids" not in self.program.inputs[1]:
            return False
        logits, ids = _first(_run(self.program, self.segments, self._known[0])[0]), self._leaf(0, "input_ids")
        if ids is None or ids.dim() != 2 or logits.dim() != 3 or logits.shape[:2] != ids.shape:
            return False
        other = torch.cat([ids[:, :-1], (ids[:, -1:] == 0).to(ids)], 1)
        leaves = [other if leaf is ids else leaf for leaf in self.batches[0]]
        changed = _first(_run(self.program, self.segments, self._constants.of(leaves))[0])
        causal = torch.allclose(changed[:, :-1], logits[:, :-1], rtol=1e-4, atol=1e-4)
        return causal and logits.shape[2] > int(ids.max())

    @staticmethod
    def _mean(parts: Iterable[tuple[float, int]]) -> float:
        found = list(parts)
        return sum(total for total, _ in found) / max(sum(count for _, count in found), 1)

    def _judge(self, i: int, outputs: Outputs) -> tuple[float, int]:
        """The loss of batch `i`, and the count of what it sums up."""
        if self.is_language_model:
            ids = self._leaf(i, "input_ids")
            assert ids is not None
            return _likelihood(_first(outputs), ids, self._leaf(i, "attention_mask"))
        old = self._dense[i].outputs
        return sum(_error(new, old[at]) for at, new in outputs.items()), len(old)

    def _leaf(self, i: int, name: str) -> Tensor | None:
        """The input of that name in batch `i`."""
        found: Tensor | None = input_leaf(self.program, self.batches[i], name)
        return found

    @cached_property
    def segments(self) -> list[Segment]:
        """The segments of the dense graph."""
        return split_at_linear_layers(self.program)

    @cached_property
    def _known(self) -> list[dict[str, Any]]:
        return [self._constants.of(leaves) for leaves in self.batches]

    @cached_property
    def _constants(self) -> Constants:
        return Constants(self.program)

    @cached_property
    def _dense(self) -> list["_Dense"]:
        """What the dense model makes of every batch."""
        step = len(self.segments) // CHECKPOINTS + 1
        places, found = range(step, len(self.segments), step), list[_Dense]()
        for i, known in enumerate(self._known):
            outputs, entries = _run(self.program, self.segments, known, places=places)
            # Logits of a large vocabulary would fill the memory, and nothing is compared with them.
            found.append(_Dense({}, entries, self._judge(i, outputs)) if self.is_language_model
                         else _Dense(outputs, entries, (0.0, len(outputs))))  # fmt: skip
        return found

    def _start(self, i: int, first: int) -> tuple[int, Any]:
        """The last remembered place before segment `first`, and what enters there in batch `i`."""
        entries = self._dense[i].entries
        at = max((place for place in entries if place <= first), default=0)
        return at, entries.get(at)


@dataclass(frozen=True)
class ChangedWeights:
    """Weights of which those called `names` differ from the dense model's."""

    weights: Weights
    names: Collection[str]


@dataclass(frozen=True)
class _Dense:
    """What the dense model makes of a batch: outputs, if they are to be compared with; what enters some segments, by
    their places; and the loss, with the count by which it is to be divided."""

    outputs: Outputs
    entries: Mapping[int, Any]
    loss: tuple[float, int]


@torch.no_grad()
def _run(
    program: Program, segments: Sequence[Segment], known: Mapping[str, Any], start: int = 0, entry: Any = None,
    places: Collection[int] = (),
) -> tuple[Outputs, dict[int, Any]]:  # fmt: skip
    """A batch through the segments from `start` on: the outputs made there, and what enters segments at `places`."""
    leaves, outputs, entries = _leaves(program), Outputs(), dict[int, Any]()
    for i, segment in enumerate(segments[start:], start):
        if i in places:
            entries[i] = entry
        entry, seen = run(segment, program, load_weights(segment, program, program.weights), known, entry, leaves)
        outputs |= _outputs(segment, leaves, seen)
    return outputs, entries


def _leaves(program: Program) -> list[str]:
    """The names of the nodes of all outputs; nothing where one is no node."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    return [leaf.name if isinstance(leaf, fx.Node) else "" for leaf in pytree.tree_leaves(output.args)]


def _outputs(segment: Segment, leaves: Sequence[str], seen: Mapping[str, Any]) -> Outputs:
    """The outputs that a segment makes, of all that was seen there."""
    found = {at: seen[name] for at, name in enumerate(leaves) if name in segment.names}
    return {at: v for at, v in found.items() if isinstance(v, Tensor) and v.is_floating_point()}


def _first(outputs: Outputs) -> Tensor:
    """The first output: of a language model its logits."""
    return outputs[min(outputs)] if outputs else torch.zeros(())


def _likelihood(logits: Tensor, ids: Tensor, mask: Tensor | None) -> tuple[float, int]:
    """The negative log likelihoods of all tokens but the first, in nats, summed; and how many there are."""
    seen = torch.ones_like(ids) if mask is None or mask.shape != ids.shape else mask
    wanted = (seen[:, 1:] != 0).flatten()
    rows, targets = logits[:, :-1].flatten(0, 1)[wanted], ids[:, 1:].flatten()[wanted]
    return negative_log_likelihood(rows, targets), len(targets)


def _error(new: Tensor, old: Tensor) -> float:
    """The squared error, relative to the squares of the dense output."""
    return float((new - old).double().square().sum() / old.double().square().sum().clamp(min=1e-30))
