"""Validation of exported files against their model, in each precision by a suitable measure."""

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters.checks import divergence, parity
from graphprune.exporters.checks.agreement import error
from graphprune.exporters.checks.parity import Runnable
from graphprune.exporters.onnx_tools.onnx_files import facts
from graphprune.exporters.onnx_tools.sessions import CPU, open_model
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.subject import Subject

MARGIN = 3  # an export may round at other operators than PyTorch does, but not much more often
_USELESS = 2e-1


@dataclass(frozen=True)
class Reference:
    """The subject in float32, with rounded weights if the file is in half precision, and the tolerated error relative
    to the typical value of an output. `extra` are cases in addition to the usual ones."""

    subject: Subject
    bound: float
    half_precision_error: float | None = None
    extra: tuple[trial_inputs.Case, ...] = ()

    @classmethod
    def of(cls, subject: Subject) -> "Reference":
        """The reference for a subject; one in half precision is copied, because the exported graph shares its weights.

        Raises:
            ExportError: if half precision alone changes the outputs too much.
        """
        if subject.dtype == torch.float32:
            return cls(subject, parity.FLOAT32)
        halved = subject.run(trial_inputs.first_case(subject))
        subject = replace(subject, module=deepcopy(subject.module)).to(torch.float32)
        own = half_precision_error(halved, subject.run(trial_inputs.first_case(subject)))
        return cls(subject, max(parity.FLOAT16, MARGIN * own), own)


def validate(
    reference: Reference, path: Path, quant: str, providers: Sequence[str] = (CPU,)
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of a file, and by provider the errors of its outputs against the reference.

    Raises:
        ExportError: if it cannot be opened, or its error is larger than its precision explains.
    """
    report, by_provider, seconds = facts(path, reference.subject, quant), dict[str, Any](), {}
    for provider in providers:
        runner = open_model(path, provider)
        seconds[f"open on {provider}"] = runner.seconds
        by_provider[provider] = compared(reference, runner, quant)
    if reference.half_precision_error is not None:
        report["half_precision_itself"] = reference.half_precision_error
    return {**report, "provider": providers[-1], "seconds": seconds}, by_provider


def compared(reference: Reference, runner: Runnable, quant: str) -> dict[str, Any]:
    """Errors of the outputs of a file against the reference; ``worst`` is the largest relative one.

    Raises:
        ExportError: if it is larger than its precision explains.
    """
    if quant == "none":
        result = parity.check(reference.subject, runner, reference.bound, reference.extra).to_dict()
        if reference.bound <= parity.FLOAT16 or "logits" not in reference.subject.outputs:
            return result
        # so wide a bound alone is a weak check
        return divergence.check(reference.subject, runner, "fp16").to_dict() | result
    return divergence.check(reference.subject, runner, quant).to_dict()


def half_precision_error(halved: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Largest change of the outputs due to half precision alone, in PyTorch, relative to their typical value.

    It is not bounded for models with logits, where a few large values of the cache may be far off: there `divergence`
    judges the predictions.

    Raises:
        ExportError: if outputs other than logits change too much.
    """
    change = max(error(halved[name], reference[name]).relative for name in reference)
    if not change <= (sys.float_info.max if "logits" in reference else _USELESS):
        raise ExportError(
            f"half precision alone changes the outputs of this model by {change:.1e} relative to the typical value, "
            f"at most {_USELESS:.0e} is useful: its values are too large or too close to each other for half "
            "precision. Use target onnx, or --dtype fp32"
        )
    return change
