"""Does an exported file give the numbers of the module that it was made from?"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters.checks.agreement import Error, error
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.subject import PRESENT, Subject, following

FLOAT32, FLOAT16 = 5e-4, 5e-3


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


def check(subject: Subject, exported: Runs, bound: float, more: Sequence[trial_inputs.Case] = ()) -> Parity:
    """Compare on shapes and contents other than those that were traced, and on `more` cases.

    Raises:
        ExportError: if an output differs by more than `bound`, relative to its largest value, or picks another token.
    """
    parity = Parity(bound)
    if subject.grows:
        for text in trial_inputs.texts(subject.vocabulary):
            _decode(parity, subject, exported, text)
        return parity
    for name, feeds, valid in (*trial_inputs.single(subject), *more):
        _compare(parity, name, _timed(parity, name, exported, feeds), subject.run(feeds), valid)
    return parity


def _decode(parity: Parity, subject: Subject, exported: Runs, text: trial_inputs.Text) -> None:
    """Feed a prompt in parts, then tokens that the reference picks, each side with its own cache."""
    past = trial_inputs.empty(subject, len(text.ids))
    caches = past, dict(past)
    done = 0
    ids, mask = text.ids, text.mask
    for step in range(text.chunks + text.steps):
        end = ids.shape[1] if step >= text.chunks - 1 else (step + 1) * ids.shape[1] // text.chunks
        feeds = trial_inputs.step_feeds(subject, ids, mask, done, end)
        name = f"{text.name}, {f'decode step {step - text.chunks + 1}' if step >= text.chunks else f'prompt to {end}'}"
        reference = subject.run({**feeds, **caches[0]})
        found = _timed(parity, name, exported, {**feeds, **caches[1]})
        _compare(parity, name, found, reference, trial_inputs.valid(mask[:, :end], done))
        caches = following(reference), following(found)
        done = end
        if end == ids.shape[1]:
            ids = torch.cat([ids, reference["logits"][:, -1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


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
        have, want = meaningful(name, found[name], valid), meaningful(name, want, valid)
        kind = name.split(".")[0]
        now = _within(parity.bound, case, name, have, want)
        errors[kind] = max(errors.get(kind, now), now, key=lambda e: e.relative)
    if "logits" in reference:
        have, want = (meaningful("logits", side["logits"], valid) for side in (found, reference))
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


def meaningful(name: str, tensor: Tensor, valid: Mapping[str, Tensor]) -> Tensor:
    """Without the positions of padding, whose contents nobody uses."""
    kind = name.split(".")[0]
    if kind in valid:
        return tensor.transpose(1, 2)[valid[kind]] if kind == PRESENT else tensor[valid[kind]]
    rows = valid.get("tokens")
    return tensor[rows] if rows is not None and tensor.shape[:2] == rows.shape else tensor
