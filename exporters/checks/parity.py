"""Parity check: an exported file must give the outputs of the module that it was exported from."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.execution.output_comparison import Discrepancy
from graphprune.exporters.checks.agreement import error
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.subject import PRESENT, Subject, next_cache

FLOAT32, FLOAT16 = 1e-3, 5e-3


class Runnable(Protocol):
    """An object that maps inputs by name to outputs by name."""

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass
class Parity:
    """Errors by case and output, and the seconds that the exported file took by case."""

    bound: float
    errors: dict[str, dict[str, Discrepancy]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max(e.relative for outputs in self.errors.values() for e in outputs.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        cases = {
            case: {name: {"absolute": e.absolute, "relative": e.relative} for name, e in outputs.items()}
            for case, outputs in self.errors.items()
        }
        return {"bound": self.bound, "worst": self.worst, "cases": cases, "seconds": self.seconds}


def check(subject: Subject, exported: Runnable, bound: float, extra: Sequence[trial_inputs.Case] = ()) -> Parity:
    """Compare on shapes and contents other than the traced ones, and on `extra` cases.

    Raises:
        ExportError: if an output differs by more than `bound` of its typical value, or has another argmax.
    """
    parity = Parity(bound)
    if subject.has_growing_cache:
        for text in trial_inputs.prompts(subject.vocabulary):
            _decode(parity, subject, exported, text)
        return parity
    for name, feeds, valid in (*trial_inputs.cacheless_cases(subject), *extra):
        _compare(parity, name, _timed(parity, name, exported, feeds), subject.run(feeds), valid)
    return parity


def _decode(parity: Parity, subject: Subject, exported: Runnable, prompt: trial_inputs.Prompt) -> None:
    """Compare on a prompt, in parts, and on tokens chosen by the reference; each side has its own cache."""
    past = trial_inputs.empty_cache(subject, len(prompt.ids))
    caches = past, dict(past)
    start = 0
    ids, mask = prompt.ids, prompt.mask
    for step in range(prompt.chunks + prompt.steps):
        end = ids.shape[1] if step >= prompt.chunks - 1 else (step + 1) * ids.shape[1] // prompt.chunks
        feeds = trial_inputs.step_feeds(subject, ids, mask, start, end)
        phase = f"decode step {step - prompt.chunks + 1}" if step >= prompt.chunks else f"prompt to {end}"
        name = f"{prompt.name}, {phase}"
        reference = subject.run({**feeds, **caches[0]})
        outputs = _timed(parity, name, exported, {**feeds, **caches[1]})
        _compare(parity, name, outputs, reference, trial_inputs.valid_positions(mask[:, :end], start))
        caches = next_cache(reference), next_cache(outputs)
        start = end
        if end == ids.shape[1]:
            ids = torch.cat([ids, reference["logits"][:, -1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


def _timed(parity: Parity, name: str, exported: Runnable, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = time.perf_counter()
    outputs = exported.run(feeds)
    parity.seconds[name] = time.perf_counter() - start
    return outputs


def _compare(
    parity: Parity,
    case: str,
    outputs: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    valid: Mapping[str, Tensor],
) -> None:
    errors = parity.errors[case] = {}
    for name, expected in reference.items():
        if outputs[name].shape != expected.shape:
            shapes = f"{tuple(outputs[name].shape)}, the model gives {tuple(expected.shape)}"
            raise ExportError(f"{case}: {name} of the exported file has shape {shapes}; nothing was exported")
        output, expected = meaningful(name, outputs[name], valid), meaningful(name, expected, valid)
        kind = name.split(".")[0]
        current = _within(parity.bound, case, name, output, expected)
        errors[kind] = max(errors.get(kind, current), current, key=lambda e: e.relative)
    if "logits" in reference:
        output, expected = (meaningful("logits", side["logits"], valid) for side in (outputs, reference))
        _same_choice(parity.bound, case, output, expected)


def _within(bound: float, case: str, name: str, output: Tensor, expected: Tensor) -> Discrepancy:
    if expected.numel() and not bool(torch.isfinite(expected).any()):
        raise ExportError(f"{case}: {name} of the model itself is NaN or infinite; nothing was exported")
    current = error(output, expected)
    if not current.relative <= bound:
        raise ExportError(
            f"{case}: {name} of the exported file differs from the model by {current.absolute:.1e}, "
            f"{current.relative:.1e} relative to the typical value (tolerance {bound:.0e}); nothing was exported"
        )
    return current


def _same_choice(bound: float, case: str, output: Tensor, expected: Tensor) -> None:
    """Raise if the argmax differs at a position where the reference's top two differ by more than twice the bound."""
    if expected.dim() < 2:
        return
    decided = decisive(expected.double(), bound)
    differ = decided & (output.argmax(-1) != expected.argmax(-1))
    if bool(differ.any()):
        raise ExportError(
            f"{case}: the exported file has another most likely output than the model at {int(differ.sum())} "
            "positions; nothing was exported"
        )


def decisive(rows: Tensor, bound: float) -> Tensor:
    """Mask of the rows whose largest value exceeds the second by more than twice what `bound` allows of an error."""
    if rows.shape[-1] < 2:
        return torch.zeros(rows.shape[:-1], dtype=torch.bool)
    top = rows.topk(2, -1).values
    margin = 2 * bound * torch.maximum(top.abs().amax(-1), typical_size(rows))
    return top[..., 0] - top[..., 1] > margin


def typical_size(values: Tensor) -> Tensor:
    """Median magnitude of the finite numbers other than zero; 0 if there are none."""
    sizes = values[values.isfinite() & (values != 0)].abs()
    return sizes.median() if sizes.numel() else sizes.new_zeros(())


def meaningful(name: str, tensor: Tensor, valid: Mapping[str, Tensor]) -> Tensor:
    """The tensor without its positions of padding."""
    kind = name.split(".")[0]
    if kind in valid:
        return tensor.transpose(1, 2)[valid[kind]] if kind == PRESENT else tensor[valid[kind]]
    rows = valid.get("tokens")
    return tensor[rows] if rows is not None and tensor.shape[:2] == rows.shape else tensor
