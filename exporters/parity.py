"""Does an exported file give the numbers of the module that it was made from?"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters.agreement import Error, error
from graphprune.exporters.subjects import PAST, PRESENT, Subject, cache_names

FLOAT32, FLOAT16 = 5e-4, 5e-3
_PREFILL, _STEPS = 7, 2


class Runs(Protocol):
    """Anything that maps inputs by name to outputs by name."""

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass
class Parity:
    """The errors by case and output, and how long the exported file took by case."""

    bound: float
    errors: dict[str, dict[str, Error]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max(e.relative for outputs in self.errors.values() for e in outputs.values())

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        cases = {
            case: {name: {"absolute": e.absolute, "relative": e.relative} for name, e in outputs.items()}
            for case, outputs in self.errors.items()
        }
        return {"bound": self.bound, "worst": self.worst, "cases": cases, "seconds": self.seconds}


@dataclass(frozen=True)
class Text:
    """Sequences of token ids with the length of each; padded on the left."""

    name: str
    ids: Tensor
    mask: Tensor
    steps: int = _STEPS
    chunks: int = 1  # the prompt is given in so many parts


def check(subject: Subject, exported: Runs, bound: float) -> Parity:
    """Compare on shapes and contents other than those that were traced.

    Raises:
        ExportError: if an output differs by more than `bound`, relative to its largest value, or picks another token.
    """
    parity = Parity(bound)
    for name, feeds, valid in _plain_cases(subject) if not subject.layers else ():
        _compare(parity, name, _timed(parity, name, exported, feeds), subject.run(feeds), valid)
    for text in _texts(subject.vocabulary) if subject.layers else ():
        _decode(parity, subject, exported, text)
    return parity


def first_feeds(subject: Subject) -> dict[str, Tensor]:
    """The inputs of the first case: for a decoder a prompt and an empty cache."""
    if not subject.layers:
        return next(_plain_cases(subject))[1]
    text = next(_texts(subject.vocabulary))
    return {**_step_feeds(subject, text.ids, text.mask, 0, text.ids.shape[1]), **_empty(subject, len(text.ids))}


def _decode(parity: Parity, subject: Subject, exported: Runs, text: Text) -> None:
    """Feed a prompt in parts, then tokens that the reference picks, each side with its own cache."""
    past = _empty(subject, len(text.ids))
    caches = past, dict(past)
    done = 0
    ids, mask = text.ids, text.mask
    for step in range(text.chunks + text.steps):
        end = ids.shape[1] if step >= text.chunks - 1 else (step + 1) * ids.shape[1] // text.chunks
        feeds = _step_feeds(subject, ids, mask, done, end)
        name = f"{text.name}, {f'decode step {step - text.chunks + 1}' if step >= text.chunks else f'prompt to {end}'}"
        reference = subject.run({**feeds, **caches[0]})
        found = _timed(parity, name, exported, {**feeds, **caches[1]})
        _compare(parity, name, found, reference, _valid(mask[:, :end], done))
        caches = _next(subject, reference), _next(subject, found)
        done = end
        if end == ids.shape[1]:
            ids = torch.cat([ids, reference["logits"][:, -1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


def _step_feeds(subject: Subject, ids: Tensor, mask: Tensor, done: int, end: int) -> dict[str, Tensor]:
    feeds = {"input_ids": ids[:, done:end], "attention_mask": mask[:, :end]}
    if "position_ids" in subject.inputs:
        feeds["position_ids"] = positions(mask[:, :end])[:, done:]
    return feeds


def positions(mask: Tensor) -> Tensor:
    """The place of each token among those that are not padding."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def _next(subject: Subject, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pairs = zip(cache_names(PAST, subject.layers), cache_names(PRESENT, subject.layers), strict=True)
    return {past: outputs[present] for past, present in pairs}


def _empty(subject: Subject, batch: int) -> dict[str, Tensor]:
    example = subject.example()
    return {name: _emptied(example[name], batch) for name in cache_names(PAST, subject.layers)}


def _emptied(tensor: Tensor, batch: int) -> Tensor:
    return torch.zeros(batch, tensor.shape[1], 0, tensor.shape[3], dtype=tensor.dtype)


def _valid(mask: Tensor, done: int) -> dict[str, Tensor]:
    """Where outputs mean something: by how many positions they have, which is how they are told apart."""
    whole = mask.bool()
    return {"logits": whole[:, done:], PRESENT: whole}


def _texts(vocabulary: int) -> Iterator[Text]:
    for seed, batch, length, chunks in ((0, 2, _PREFILL, 1), (1, 1, _PREFILL - 2, 1), (2, 2, _PREFILL + 1, 2)):
        ids = _random(vocabulary, (batch, length), seed)
        parts = f" in {chunks} parts" if chunks > 1 else ""
        yield Text(f"batch {batch}, {length} tokens{parts}", ids, torch.ones_like(ids), chunks=chunks)
    ids = _random(vocabulary, (2, _PREFILL), 3)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    yield Text("batch 2, one padded on the left", ids, mask)


def _plain_cases(subject: Subject) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    example = subject.example()
    for seed, shape in enumerate(((2, 7), (1, 5), (3, 9))):
        batch, length = shape
        feeds = {name: _vary(name, tensor, subject.vocabulary, shape, seed) for name, tensor in example.items()}
        yield f"batch {batch}{f', {length} tokens' if 'input_ids' in feeds else ''}", feeds, {}
    if "attention_mask" in example:
        feeds = {name: _vary(name, tensor, subject.vocabulary, (2, 6), 3) for name, tensor in example.items()}
        feeds["attention_mask"][1, 4:] = 0
        yield "batch 2, one padded on the right", feeds, {"tokens": feeds["attention_mask"].bool()}


def _vary(name: str, tensor: Tensor, vocabulary: int, shape: tuple[int, int], seed: int) -> Tensor:
    if tensor.is_floating_point():
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape[0], *tensor.shape[1:], generator=generator).to(tensor.dtype)
    if name == "attention_mask":
        return torch.ones(shape, dtype=tensor.dtype)
    return _random(vocabulary if name == "input_ids" else 1, shape, seed)


def _random(vocabulary: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def _timed(parity: Parity, name: str, exported: Runs, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = time.perf_counter()
    outputs = exported.run(feeds)
    parity.seconds[name] = time.perf_counter() - start
    return outputs


def _compare(
    parity: Parity, case: str, found: Mapping[str, Tensor], reference: Mapping[str, Tensor], valid: Mapping[str, Tensor]
) -> None:
    errors = parity.errors[case] = {}
    for name, want in reference.items():
        if found[name].shape != want.shape:
            shapes = f"{tuple(found[name].shape)}, the model gives {tuple(want.shape)}"
            raise ExportError(f"{case}: {name} of the exported file has shape {shapes}; nothing was exported")
        have, want = _meaningful(name, found[name], valid), _meaningful(name, want, valid)
        kind = name.split(".")[0]
        now = _within(parity.bound, case, name, have, want)
        errors[kind] = max(errors.get(kind, now), now, key=lambda e: e.relative)
    if "logits" in reference:
        have, want = (_meaningful("logits", side["logits"], valid) for side in (found, reference))
        _same_choice(parity.bound, case, have, want)


def _within(bound: float, case: str, name: str, have: Tensor, want: Tensor) -> Error:
    if not bool(torch.isfinite(want).all()):
        raise ExportError(f"{case}: {name} of the model itself is NaN or infinite; nothing was exported")
    now = error(have, want)
    if not now.relative <= bound:
        raise ExportError(
            f"{case}: {name} of the exported file differs from the model by {now.absolute:.1e}, {now.relative:.1e} "
            f"relative to the largest value, allowed are {bound:.0e}; nothing was exported"
        )
    return now


def _same_choice(bound: float, case: str, have: Tensor, want: Tensor) -> None:
    """The likeliest class must be the same wherever the reference is not undecided within the bound."""
    if want.dim() < 2 or want.shape[-1] < 2:
        return
    best = want.double().topk(2, -1).values
    decided = best[..., 0] - best[..., 1] > 2 * bound * want.double().abs().max()
    differ = decided & (have.argmax(-1) != want.argmax(-1))
    if bool(differ.any()):
        raise ExportError(
            f"{case}: the exported file prefers another output than the model at {int(differ.sum())} places; "
            "nothing was exported"
        )


def _meaningful(name: str, tensor: Tensor, valid: Mapping[str, Tensor]) -> Tensor:
    """Without the positions of padding, whose contents nobody uses."""
    kind = name.split(".")[0]
    if kind in valid:
        return tensor.transpose(1, 2)[valid[kind]] if kind == PRESENT else tensor[valid[kind]]
    rows = valid.get("tokens")
    return tensor[rows] if rows is not None and tensor.shape[:2] == rows.shape else tensor
