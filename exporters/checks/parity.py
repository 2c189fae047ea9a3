"""Parity check: an exported file must give the outputs of the module that it was exported from."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from graphprune.errors import ExportError, InputError
from graphprune.execution import rounding
from graphprune.execution.output_comparison import Discrepancy
from graphprune.exporters.checks.agreement import error
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.subject import PRESENT, Feeds, Subject, next_cache

log = logging.getLogger(__name__)
FLOAT32, FLOAT16 = 1e-3, 5e-3
AMPLIFIED = 4096  # roundings of the largest output: deep models make so much of one, and no runtime has a wider type


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


@dataclass(frozen=True)
class _Reference:
    """Outputs of a subject for some inputs, and masks of the valid positions by output name."""

    case: str
    subject: Subject
    feeds: Feeds
    outputs: Feeds
    valid: Feeds

    @cached_property
    def rounding(self) -> Feeds:
        """Rounding of each output, estimated."""
        outputs = [*self.outputs.values()]
        errors = rounding.estimated(lambda: [*self.subject.run(self.feeds).values()], outputs, AMPLIFIED)
        return dict(zip(self.outputs, errors, strict=True))

    def of(self, name: str, outputs: Mapping[str, Tensor]) -> Tensor:
        """An output among others like it, without its positions of padding."""
        return meaningful(name, outputs[name], self.valid)


def check(subject: Subject, exported: Runnable, bound: float, extra: Sequence[trial_inputs.Case] = ()) -> Parity:
    """Compare on shapes and contents other than the traced ones, and on `extra` cases.

    Inputs that the module refuses, since its capture does not hold for them, are named in a warning, as the exported
    file accepts them; where all are refused, the example is compared.

    Raises:
        ExportError: if an output differs by more than `bound` of its typical value, or has another argmax.
    """
    parity = Parity(bound)
    if subject.has_growing_cache:
        for text in trial_inputs.prompts(subject):
            _decode(parity, subject, exported, text)
        return parity
    for name, feeds, valid in (*trial_inputs.cacheless_cases(subject), *extra):
        try:
            reference = subject.run(feeds)
        except InputError as fault:
            log.warning("%s: %s; the exported file does not refuse such inputs", name, fault)
            continue
        _compare(parity, exported, _Reference(name, subject, feeds, reference, valid))
    if not parity.errors:
        feeds = subject.example()
        _compare(parity, exported, _Reference("the traced inputs", subject, feeds, subject.run(feeds), {}))
    return parity


def _decode(parity: Parity, subject: Subject, exported: Runnable, prompt: trial_inputs.Prompt) -> None:
    """Compare on a prompt, in parts, and on tokens chosen by the reference; each side has its own cache.

    Where outputs differ by more than the bound, the reference decides with the cache of the exported file: it was
    within the bound, and a model may amplify its rounding.
    """
    past = trial_inputs.empty_cache(subject, len(prompt.ids))
    caches = past, dict(past)
    start = 0
    ids, mask = prompt.ids, prompt.mask
    for step in range(prompt.chunks + prompt.steps):
        end = ids.shape[1] if step >= prompt.chunks - 1 else (step + 1) * ids.shape[1] // prompt.chunks
        feeds = trial_inputs.step_feeds(subject, ids, mask, start, end)
        phase = f"decode step {step - prompt.chunks + 1}" if step >= prompt.chunks else f"prompt to {end}"
        name = f"{prompt.name}, {phase}"
        feeds, cached = {**feeds, **caches[0]}, {**feeds, **caches[1]}
        valid = trial_inputs.valid_positions(mask[:, :end], start)
        reference = _Reference(name, subject, feeds, subject.run(feeds), valid)
        try:
            outputs = _compare(parity, exported, reference, cached)
        except ExportError:
            if start == 0:
                raise
            reference = _Reference(name, subject, cached, subject.run(cached), valid)
            outputs = _compare(parity, exported, reference)
        caches = next_cache(reference.outputs), next_cache(outputs)
        start = end
        if end == ids.shape[1]:
            ids = torch.cat([ids, reference.outputs["logits"][:, -1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


def _compare(parity: Parity, exported: Runnable, reference: _Reference, feeds: Feeds | None = None) -> Feeds:
    """Compare with the reference; return the outputs for the same inputs, or for other `feeds`."""
    case, start = reference.case, time.perf_counter()
    outputs = exported.run(feeds or reference.feeds)
    parity.seconds[case] = time.perf_counter() - start
    errors = parity.errors[case] = {}
    for name, expected in reference.outputs.items():
        if outputs[name].shape != expected.shape:
            shapes = f"{tuple(outputs[name].shape)}, the model gives {tuple(expected.shape)}"
            raise ExportError(f"{case}: {name} of the exported file has shape {shapes}; nothing was exported")
        kind = name.split(".")[0]
        current = _within(parity.bound, reference, name, outputs)
        errors[kind] = max(errors.get(kind, current), current, key=lambda e: e.relative)
    if "logits" in reference.outputs:
        output, expected = (reference.of("logits", side) for side in (outputs, reference.outputs))
        _same_choice(parity.bound, case, output, expected)
    return outputs


def _within(bound: float, reference: _Reference, name: str, outputs: Feeds) -> Discrepancy:
    output, expected = (reference.of(name, side) for side in (outputs, reference.outputs))
    case = reference.case
    if expected.numel() and not bool(torch.isfinite(expected).any()):
        raise ExportError(f"{case}: {name} of the model itself is NaN or infinite; nothing was exported")
    current = error(output, expected)
    if bound < current.relative < float("inf"):
        current = error(output, expected, reference.of(name, reference.rounding))
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
