"""Calibration inputs, and the collection of their statistics while they run through the graph."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from graphprune.axes.rule import Consumer
from graphprune.axes.rule_helpers import as_rows
from graphprune.errors import CalibrationError
from graphprune.huggingface import model_folder
from graphprune.ir.program import Program
from graphprune.statistics.moments import Drift, InputDrift, Moments
from graphprune.support import distributed

BATCH_TOKENS = 2048  # enough to keep a processor busy; gradients need some megabytes per token
DECODER_IDS = "decoder_input_ids"  # the tokens that the decoder of an encoder-decoder reads
LEAST_ENERGY = 1e-4  # of a token, by the mean, where tokens are weighted by the inverse of their energy
HELD_OUT = 8  # every eighth batch is held out for choices by error


@dataclass(frozen=True)
class Calibration:
    """Fact: batches of input leaves and their source; `sha256` is that of token ids.

    With `autocast`, matrices are multiplied in bfloat16 (see `matmul_autocast`). Segments run on `device`.
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
        """Whether batch `i` is held out, for choices among fits on the others."""
        count = len(self.batches)
        return i % HELD_OUT == HELD_OUT - 1 if count >= HELD_OUT else i == count - 1 > 0

    def windows(self, i: int) -> list[Sequence[Any]]:
        """Batch `i` as batches of single windows of a text; the whole batch where it is no text."""
        leaves = self.batches[i]
        if not self.length:
            return [leaves]
        return [[leaf[at : at + 1] for leaf in leaves] for at in range(len(leaves[0]))]


def matmul_autocast(bfloat16: bool, device: str = "cpu") -> torch.autocast:
    """Context that multiplies matrices in bfloat16 if `bfloat16` is set; sums over tokens are unaffected."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16)


def at_least_single(value: Tensor) -> Tensor:
    """Value in at least single precision, since sums of products in lower precision lose too many digits."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def token_batches(program: Program, ids: Tensor, tokens: int = BATCH_TOKENS) -> list[list[Any]]:
    """Batches of input leaves for token ids of shape (samples, length), of about `tokens` tokens.

    Raises:
        CalibrationError: if the program takes other inputs than token ids and a mask.
    """
    size = max(1, min(tokens // ids.shape[1], len(ids) // HELD_OUT))
    return [program.flat((), token_inputs(program, part)) for part in torch.split(ids, size)]


def token_inputs(program: Program, ids: Tensor) -> dict[str, Any]:
    """Named inputs for token ids, shape (batch, length): the ids, and a mask of ones if the program takes one.

    The encoder of an encoder-decoder reads the first half of each window. Its decoder predicts the second half: it
    reads the start token, then all tokens of that half but the last.

    Raises:
        CalibrationError: if the program takes other inputs.
    """
    names = list(program.inputs[1])
    available = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if DECODER_IDS in names:
        start = model_folder.start_token(program.source.path) if program.source else 0
        available = encoder_decoder_inputs(ids, start)
    if program.inputs[0] or "input_ids" not in names or set(names) - available.keys():
        others = ["positional inputs"] * bool(program.inputs[0]) + [name for name in names if name not in available]
        raise CalibrationError(
            f"a text gives token ids alone, and the model takes {', '.join(others or names)}, too: pass batches from "
            "Python instead (batches=[(args, kwargs), ...]), or choose a recipe that needs no data, such as magnitude"
        )
    return {name: available[name] for name in names}


def encoder_decoder_inputs(ids: Tensor, start: int) -> dict[str, Tensor]:
    """Named inputs of an encoder-decoder for token ids, shape (batch, length): see `token_inputs`."""
    first, second = ids[:, : ids.shape[1] // 2], ids[:, ids.shape[1] // 2 :]
    moved = torch.cat([torch.full_like(second[:, :1], start), second[:, :-1]], 1)
    masks = {"attention_mask": torch.ones_like(first), "decoder_attention_mask": torch.ones_like(moved)}
    return {"input_ids": first, DECODER_IDS: moved, **masks}


def next_tokens(scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of all tokens of a window that are predicted, and those tokens, shape (batch, predicted).

    Args:
        scores: The logits of a decoder, shape (batch, length, vocabulary), or of the decoder in an encoder-decoder,
            shape (batch, length - length // 2, vocabulary).
        ids: The windows, shape (batch, length).
    """
    if scores.shape[1] == ids.shape[1]:
        return scores[:, :-1], ids[:, 1:]
    return scores, ids[:, -scores.shape[1] :]


def predicted_inputs(program: Program) -> tuple[str, str]:
    """Names of the inputs whose next tokens a language model predicts, and of their mask."""
    decodes = DECODER_IDS in program.inputs[1]
    return (DECODER_IDS, "decoder_attention_mask") if decodes else ("input_ids", "attention_mask")


def input_leaf(program: Program, leaves: Sequence[Any], name: str) -> Any:
    """Leaf of a batch that is the keyword input of this name; None if the program has no such input."""
    example = program.inputs[1].get(name)
    pairs = zip(program.flat(*program.inputs), leaves, strict=True)
    return next((leaf for other, leaf in pairs if other is example), None) if example is not None else None


def token_mask(program: Program, leaves: Sequence[Any]) -> Tensor | None:
    """Mask of the tokens of a batch that are not padding, shape (batch, length).

    None if there is no padding, or the program has no `attention_mask`; also where the tokens of an encoder and of a
    decoder have the same shape, so that their values cannot be distinguished.
    """
    mask = input_leaf(program, leaves, "attention_mask")
    decoded = input_leaf(program, leaves, DECODER_IDS)
    if isinstance(mask, Tensor) and isinstance(decoded, Tensor) and decoded.shape == mask.shape:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.is_floating_point() or bool((mask != 0).all()):
        return None
    return mask != 0


@dataclass
class Collector:
    """Collector of the moments of consumers; consumers that read the same value share them.

    Padding is not counted. With `mix`, a refit aims at outputs at this fraction of the way from those of the given
    inputs to those of reference inputs, except for members of stacks, whose rows depend on the inputs; `weights` are
    those of the consumers. `residual` names, by consumer, a value
    that is added to its outputs; the target is then the reference sum. With `relative`, a token of a
    linear layer counts by the inverse of the energy of this sum. With `normalized`, the inputs of a token have norm 1.
    """

    consumers: Sequence[Consumer]
    diagonal: bool = False
    moments: dict[str, Moments] = field(default_factory=dict)
    mix: float = 0.0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    residual: Mapping[str, str] = field(default_factory=dict)
    relative: bool = False
    normalized: bool = False
    drifts: dict[str, Drift] = field(default_factory=dict)
    input_drifts: dict[str, InputDrift] = field(default_factory=dict)

    @property
    def watched(self) -> set[str]:
        """Names of the nodes whose values it needs."""
        offsets = {c.member.offsets for c in self.consumers if c.member is not None and c.member.offsets is not None}
        return {consumer.x for consumer in self.consumers} | set(self.residual.values()) | offsets

    @property
    def moments_with_drift(self) -> dict[str, Moments]:
        """Moments of every consumer, with its own drift."""
        matrices = {c.key: c.matrix(self.weights[c.weight]) for c in self.consumers if c.key in self.input_drifts}
        derived = {key: self.input_drifts[key].of_outputs(self.mix * m.double()) for key, m in matrices.items()}
        drifts = self.drifts | derived
        return {node: replace(moments, drift=drifts.get(node)) for node, moments in self.moments.items()}

    def all_reduce(self) -> None:
        """Reduce the moments over all processes, so that each has the sums."""
        if distributed.world_size() == 1:
            return
        for group in self._alike().values():
            moments = Moments.all_reduced(self.moments.get(group[0].key))
            self.moments |= {} if moments is None else dict.fromkeys((c.key for c in group), moments)
            if aimed := [c.key for c in group if c.key in self._aimed_by_inputs]:
                shift = InputDrift.all_reduced(self.input_drifts.get(aimed[0]))
                self.input_drifts |= {} if shift is None else dict.fromkeys(aimed, shift)
        for consumer in (c for c in self.consumers if c.key not in self._aimed_by_inputs):
            drift = Drift.all_reduced(self.drifts.get(consumer.key))
            self.drifts |= {} if drift is None else {consumer.key: drift}

    def _alike(self) -> dict[tuple[str, str], list[Consumer]]:
        """Consumers that share their moments, by key."""
        by_value: dict[tuple[str, str], list[Consumer]] = {}
        for consumer in self.consumers:
            shares = consumer.reads_values and not self._is_relative(consumer)
            by_value.setdefault((consumer.x, "" if shares else consumer.key), []).append(consumer)
        return by_value

    @cached_property
    def _aimed_by_inputs(self) -> set[str]:
        """Consumers that share the drift of their inputs, since that takes fewer multiplications than their own."""
        found = set[str]()
        for group in self._alike().values():
            plain = [c for c in group if c.reads_values and c.key not in self.residual]
            shapes = [c.matrix(self.weights[c.weight]).shape for c in plain if c.weight in self.weights]
            if shapes and 4 * sum(outputs for outputs, _ in shapes) >= 3 * shapes[0][1]:
                found |= {c.key for c in plain}
        return found

    def restricted_to(self, nodes: Collection[str]) -> "Collector":
        """Collector restricted to the consumers among `nodes`."""
        return replace(self, consumers=[consumer for consumer in self.consumers if consumer.node in nodes])

    def add(
        self, seen: Mapping[str, Tensor], others: Mapping[str, Tensor] | None = None, real: Tensor | None = None
    ) -> None:
        """Add the values of one batch, and reference values `others` for refits; `real` is its `token_mask`.

        Raises:
            CalibrationError: if a value is not finite.
        """
        first: dict[str, tuple[str, Tensor]] = {}
        shifts: dict[str, InputDrift] = {}
        for consumer in (c for c in self.consumers if c.x in seen):
            shares = consumer.reads_values and not self._is_relative(consumer)
            known = first.get(consumer.x) if shares else None
            owner, features = known or (consumer.key, _features(consumer, seen, real))
            roots: Tensor | None = None
            if others is not None and consumer.key in self._aimed_by_inputs:
                shifts[consumer.x] = shifts.get(consumer.x) or self._shift(consumer, features, others, real)
                self.input_drifts[consumer.key] = shifts[consumer.x]
            elif others is not None and consumer.member is None:
                roots = self._aim(consumer, features, seen, others, real)
            if known:
                self.moments[consumer.key] = self.moments[owner]
                continue
            if shares:
                first[consumer.x] = owner, features
            if owner not in self.moments:
                self.moments[owner] = Moments.empty(features.shape[1], self.diagonal, features.device)
            self.moments[owner].add(features, _inverse_norms(features) if self.normalized else roots)
            if not torch.isfinite(self.moments[owner].sums).all():  # as soon as one feature is not
                raise CalibrationError(
                    f"the activations at {consumer.x} hold NaN or infinity; check the model and the calibration data"
                )

    def _shift(self, consumer: Consumer, x: Tensor, others: Mapping[str, Tensor], real: Tensor | None) -> InputDrift:
        """Add the drift of the inputs in a batch; return that of all batches."""
        known = self.input_drifts.get(consumer.key) or InputDrift.empty(x.shape[1], x.device)
        known.add(x, _features(consumer, others, real))
        return known

    def _is_relative(self, consumer: Consumer) -> bool:
        """Whether the tokens of a consumer are weighted by the energy of the sum that its outputs are part of."""
        return self.relative and consumer.outputs is as_rows and consumer.key in self.residual

    def _aim(
        self, consumer: Consumer, x: Tensor, seen: Mapping[str, Tensor], others: Mapping[str, Tensor],
        real: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """Add the drift of a batch: the difference of the target outputs of a refit from those of the given inputs.

        Returns the square roots of the weights of its tokens, shape (tokens, 1), if they have any.
        """
        residual, roots = self.residual.get(consumer.key), None
        matrix = consumer.matrix(self.weights[consumer.weight].to(x.device))
        reference = _features(consumer, others, real)
        shift = self.mix * (reference - x) @ matrix.T
        if residual is not None and consumer.outputs is not None:
            added = [_real(consumer.outputs(v[residual]), others[consumer.x], real) for v in (others, seen)]
            shift += added[0] - added[1]
            if self._is_relative(consumer):
                energy = (added[0] + reference @ matrix.T).square().mean(1, keepdim=True)
                roots = energy.clamp(min=LEAST_ENERGY * float(energy.mean()) or 1.0).rsqrt()
        drift = Drift.of(x, shift, roots)
        self.drifts[consumer.key] = self.drifts[consumer.key] + drift if consumer.key in self.drifts else drift
        return roots


def _inverse_norms(features: Tensor) -> Tensor:
    """Square roots of the weights with which the features of all tokens have norm 1, shape (tokens, 1)."""
    norms: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return norms.clamp(min=LEAST_ENERGY * float(norms.mean()) or 1.0).reciprocal()


def _features(consumer: Consumer, values: Mapping[str, Tensor], real: Tensor | None) -> Tensor:
    """Features of the value that a consumer reads, shape (tokens, columns), without padding where its rows are tokens.

    The rows of a member of a stack are routed ones, whose tokens are unknown: padding is counted.
    """
    value = values[consumer.x]
    if consumer.member is not None:
        return at_least_single(consumer.features(consumer.member.rows(value, values)))
    return _real(at_least_single(consumer.features(value)), value, real)


def _real(rows: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
    """Rows of a value, without padding where they are tokens."""
    if real is None or len(rows) != real.numel() or (value.dim() > 2 and value.shape[:2] != real.shape):
        return rows
    return rows[real.flatten()]
