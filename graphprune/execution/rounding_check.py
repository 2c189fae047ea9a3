"""Comparison of two sides that compute in single precision, and may differ by rounding alone."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from graphprune.errors import VerificationError, because
from graphprune.execution import rounding
from graphprune.execution.output_comparison import Verification, compare, difference, numbers, paired

log = logging.getLogger(__name__)
CLOSE = 1e-5  # of the typical value: rounding in single precision that needs no estimate


def compare_closely(reference: Any, output: Any, what: str, again: Callable[[], Any]) -> Verification:
    """Compare two outputs; of differences of more than `CLOSE`, those beyond rounding are refused.

    `again` computes the output anew, to estimate how far rounding reaches.

    Raises:
        VerificationError: if shapes or numbers disagree, or a number is finite on one side alone.
    """
    verification = compare(reference, output, what)
    if verification.max_error > CLOSE:
        require_rounding(reference, output, what, again)
    return verification


def require_rounding(
    reference: Any,
    output: Any,
    what: str,
    again: Callable[[], Any],
    close: float = CLOSE,
    greatest: float = rounding.GREATEST,
) -> None:
    """Refuse differences of more than `close` in single precision beyond rounding.

    Other precisions are not judged. Rounding counts up to `greatest` of the largest output. With infinity, a choice
    that the last bit decides counts as well, for callers that have no double precision to decide it.

    Raises:
        VerificationError: if there is one.
    """
    pairs = paired(reference, output, what)
    if any(a.is_floating_point() and a.dtype != torch.float32 for a, _ in pairs):
        return
    try:
        noise = rounding.estimated(lambda: numbers(again()), [b for _, b in pairs], greatest)
    except Exception as fault:  # operators raise anything in a mode that watches them
        log.warning("%s: rounding was not estimated, so small differences passed%s", what, because(fault))
        return
    for (a, b), error in zip(pairs, noise, strict=True):
        if (apart := difference(a, b, what, error).relative) > close:
            raise VerificationError(
                f"{what}: beyond rounding, they differ by {apart:.2e} of the typical value; nothing was saved"
            )
