"""Calibration inputs, and the sums that are gathered while they run through the graph."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from graphprune.axes.rule import Consumer
from graphprune.errors import CalibrationError
from graphprune.ir.program import Program
from graphprune.statistics.moments import Drift, Moments
from graphprune.support import distributed

BATCH_TOKENS = 2048  # enough to keep a processor busy; gradients need some megabytes a token
HELD_OUT = 8  # every eighth batch is held out when something is chosen by error


@dataclass(frozen=True)
class Calibration:
    """A fact: batches of input leaves, and where they came from; `sha256` is that of token ids.

    With `autocast`, who runs them multiplies matrices in bfloat16 (see `products`). `device` is where segments run.
    """

    batches: Sequence[Sequence[Any]]
    source: str
    samples: int
    length: int
    seed: int
    sha256: str = ""
    autocast: bool = False
    device: str = "cpu"

    def held_out(self, i: int) -> bool:
        """Is batch `i` kept for choosing what is fitted on the others?"""
        count = len(self.batches)
        return i % HELD_OUT == HELD_OUT - 1 if count >= HELD_OUT else i == count - 1 > 0


def matmul_autocast(bfloat16: bool, device: str = "cpu") -> torch.autocast:
    """A context in which matrices are multiplied in bfloat16, or as ever; all sums over tokens stay what they are."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16)


def at_least_single(value: Tensor) -> Tensor:
    """The value in single precision, or double if it has that: sums of products of fewer digits would lose too much."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def token_batches(program: Program, ids: Tensor, tokens: int = BATCH_TOKENS) -> list[list[Any]]:
    """Input leaves for token ids of shape (samples, length), about so many `tokens` at a time.

    Raises:
        CalibrationError: if the program takes other inputs than token ids and a mask.
    """
    size = max(1, min(tokens // ids.shape[1], len(ids) // HELD_OUT))
    return [program.flat((), token_inputs(program, part)) for part in torch.split(ids, size)]


def token_inputs(program: Program, ids: Tensor) -> dict[str, Any]:
    """Named inputs for token ids, shape (batch, length): the ids, and a mask of ones if the program takes one.

    Raises:
        CalibrationError: if the program takes other inputs.
    """
    makers = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    names = list(program.inputs[1])
    if program.inputs[0] or "input_ids" not in names or set(names) - makers.keys():
        raise CalibrationError(
            f"the model takes {len(program.inputs[0])} positional inputs and {names}, not token ids and a mask; "
            "pass batches of inputs instead of a text"
        )
    return {name: makers[name] for name in names}


def input_leaf(program: Program, leaves: Sequence[Any], name: str) -> Any:
    """The one of a batch of input leaves that is the keyword input of that name; None if the program has none."""
    wanted = program.inputs[1].get(name)
    pairs = zip(program.flat(*program.inputs), leaves, strict=True)
    return next((mine for theirs, mine in pairs if theirs is wanted), None) if wanted is not None else None


def token_mask(program: Program, leaves: Sequence[Any]) -> Tensor | None:
    """Which tokens of a batch of input leaves are no padding, shape (batch, length).

    None if all are, or the program takes no `attention_mask` that says so.
    """
    mask = input_leaf(program, leaves, "attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.is_floating_point() or bool((mask != 0).all()):
        return None
    return mask != 0


@dataclass
class Collector:
    """Gathers the moments of consumers; those that read the same value share theirs.

    Padding is not counted. With `mix`, refits aim at outputs so far on the way from those of the inputs seen to those
    of others; `weights` are those of the maps. `beside` names, by consumer, a value that is added to its outputs: the
    aim is the other sum.
    """

    consumers: Sequence[Consumer]
    diagonal: bool = False
    moments: dict[str, Moments] = field(default_factory=dict)
    mix: float = 0.0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    residual: Mapping[str, str] = field(default_factory=dict)
    drifts: dict[str, Drift] = field(default_factory=dict)

    @property
    def watched(self) -> set[str]:
        """The nodes whose values it wants to see."""
        return {consumer.x for consumer in self.consumers} | set(self.residual.values())

    @property
    def moments_with_drift(self) -> dict[str, Moments]:
        """The moments of every consumer, with its own drift."""
        return {node: replace(moments, drift=self.drifts.get(node)) for node, moments in self.moments.items()}

    def all_reduce(self) -> None:
        """Add up what all processes have seen; each of them has what the others have, then."""
        if distributed.world_size() == 1:
            return
        for group in self._alike().values():
            moments = Moments.all_reduced(self.moments.get(group[0].node))
            self.moments |= {} if moments is None else dict.fromkeys((c.node for c in group), moments)
        for consumer in self.consumers:
            drift = Drift.all_reduced(self.drifts.get(consumer.node))
            self.drifts |= {} if drift is None else {consumer.node: drift}

    def _alike(self) -> dict[tuple[str, str], list[Consumer]]:
        """The consumers that share their moments."""
        found: dict[tuple[str, str], list[Consumer]] = {}
        for consumer in self.consumers:
            found.setdefault((consumer.x, consumer.node if consumer.taps > 1 else ""), []).append(consumer)
        return found

    def restricted_to(self, nodes: Collection[str]) -> "Collector":
        """The same, for the consumers among `nodes` only."""
        here = [consumer for consumer in self.consumers if consumer.node in nodes]
        return replace(self, consumers=here)

    def add(
        self, seen: Mapping[str, Tensor], others: Mapping[str, Tensor] | None = None, real: Tensor | None = None
    ) -> None:
        """See the values of one batch, and those `others` at which refits aim; `real` is what `attended` says of it.

        Raises:
            CalibrationError: if one of them is not finite.
        """
        first: dict[str, tuple[str, Tensor]] = {}
        for consumer in (c for c in self.consumers if c.x in seen):
            known = first.get(consumer.x) if consumer.taps == 1 else None
            same, features = known or (consumer.node, _features(consumer, seen[consumer.x], real))
            if others is not None:
                self._aim(consumer, features, seen, others, real)
            if known:
                self.moments[consumer.node] = self.moments[same]
                continue
            if consumer.taps == 1:
                first[consumer.x] = same, features
            if same not in self.moments:
                self.moments[same] = Moments.empty(features.shape[1], self.diagonal, features.device)
            self.moments[same].add(features)
            if not torch.isfinite(self.moments[same].sums).all():  # as soon as one feature is not
                raise CalibrationError(
                    f"the activations at {consumer.x} hold NaN or infinity; check the model and the calibration data"
                )

    def _aim(
        self, consumer: Consumer, x: Tensor, seen: Mapping[str, Tensor], others: Mapping[str, Tensor],
        real: Tensor | None,
    ) -> None:  # fmt: skip
        """Add up by how much the outputs that a refit aims at differ from those of the inputs seen."""
        beside = self.residual.get(consumer.node)
        moved = self.mix * (_features(consumer, others[consumer.x], real) - x)
        shift = moved @ consumer.matrix(self.weights[consumer.weight].to(x.device)).T
        if beside is not None and consumer.outputs is not None:
            shift += _real(consumer.outputs(others[beside] - seen[beside]), others[consumer.x], real)
        drift = Drift.of(x, shift)
        self.drifts[consumer.node] = self.drifts[consumer.node] + drift if consumer.node in self.drifts else drift


def _features(consumer: Consumer, value: Tensor, real: Tensor | None) -> Tensor:
    """The features of a value, shape (tokens, columns), without those of padding where its rows are tokens."""
    return _real(at_least_single(consumer.features(value)), value, real)


def _real(rows: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
    """Rows made of a value, those of padding left out where they are tokens."""
    if real is None or len(rows) != real.numel() or (value.dim() > 2 and value.shape[:2] != real.shape):
        return rows
    return rows[real.flatten()]
