"""Is an ONNX file what its model is? In each precision by the measure that fits it."""

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
from graphprune.exporters.checks.parity import Runs
from graphprune.exporters.onnx_tools.onnx_files import facts
from graphprune.exporters.onnx_tools.sessions import CPU, open_model
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.subject import Subject

MARGIN = 3  # an export may round in other places than PyTorch does, not much more
_USELESS = 5e-2


@dataclass(frozen=True)
class Reference:
    """The subject in float32, of the rounded weights if the file is in half precision, and the error that is allowed
    relative to the largest value of an output. `more` are cases besides those of every model of its kind."""

    subject: Subject
    bound: float
    half_precision_itself: float | None = None
    more: tuple[trial_inputs.Case, ...] = ()

    @classmethod
    def of(cls, subject: Subject) -> "Reference":
        """That of a subject; one in half precision is copied, since the exported graph holds its very weights.

        Raises:
            ExportError: if half precision alone changes the outputs beyond use.
        """
        if subject.dtype == torch.float32:
            return cls(subject, parity.FLOAT32)
        halved = subject.run(trial_inputs.first(subject))
        subject = replace(subject, module=deepcopy(subject.module)).to(torch.float32)
        own = own_error(halved, subject.run(trial_inputs.first(subject)))
        return cls(subject, max(parity.FLOAT16, MARGIN * own), own)


def validate(
    reference: Reference, path: Path, quant: str, providers: Sequence[str] = (CPU,)
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of a file, and by provider how far its outputs are from those of the reference.

    Raises:
        ExportError: if it cannot be opened, or differs by more than its precision explains.
    """
    table, found, seconds = facts(path, reference.subject, quant), dict[str, Any](), {}
    for provider in providers:
        runner = open_model(path, provider)
        seconds[f"open on {provider}"] = runner.seconds
        found[provider] = compared(reference, runner, quant)
    if reference.half_precision_itself is not None:
        table["half_precision_itself"] = reference.half_precision_itself
    return {**table, "provider": providers[-1], "seconds": seconds}, found


def compared(reference: Reference, runner: Runs, quant: str) -> dict[str, Any]:
    """How far the outputs of a file are from those of the reference; ``worst`` is the largest relative error.

    Raises:
        ExportError: if that is more than its precision explains.
    """
    if quant == "none":
        near = parity.check(reference.subject, runner, reference.bound, reference.more).to_dict()
        if reference.bound <= parity.FLOAT16 or "logits" not in reference.subject.outputs:
            return near
        return divergence.check(reference.subject, runner, "fp16").to_dict() | near  # a bound so wide says little
    return divergence.check(reference.subject, runner, quant).to_dict()


def own_error(halved: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """By how much half precision alone, in PyTorch, changes the outputs, relative to their largest value.

    Of a model with logits that alone says little, since few large values of its cache may be far off: there it is what
    the file says that is judged, by `divergence`.

    Raises:
        ExportError: if it changes them beyond use.
    """
    own = max(error(halved[name], reference[name]).relative for name in reference)
    if not own <= (sys.float_info.max if "logits" in reference else _USELESS):
        raise ExportError(
            f"half precision alone changes the outputs of this model by {own:.1e} relative to the largest value, "
            f"allowed are {_USELESS:.0e}: its values are too large or too close for it. Use target onnx, or "
            "--dtype fp32"
        )
    return own
