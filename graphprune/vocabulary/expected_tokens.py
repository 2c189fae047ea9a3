"""Frequencies of tokens by the predictions of a model: they tell tokens apart that a corpus does not have."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphprune.display.progress import progress
from graphprune.errors import CalibrationError

_ROWS = 64  # rows of probabilities at a time, since those of a large vocabulary are large
LEAST = 0.005  # occurrences in the corpus; tokens that are expected less often are as good as absent


def expected(model: Callable[..., Any], windows: Tensor, tokens: int) -> dict[int, float]:
    """Expected counts in a text of so many tokens, by the mean prediction of a causal language model.

    `windows` are token ids of the corpus, shape (n, length).

    Raises:
        CalibrationError: if the predictions are not finite.
    """
    sums: Tensor | None = None
    with torch.inference_mode(), progress("predicting tokens", len(windows)) as step:
        for row in windows:
            logits = model(input_ids=row[None]).logits[0]
            for part in logits.split(_ROWS):
                share = part.float().softmax(-1).sum(0).double()
                sums = share if sums is None else sums + share
            step(1)
    if sums is None or not bool(sums.isfinite().all()):
        raise CalibrationError("the model predicts numbers that are not finite")
    counts = (sums * (tokens / windows.numel())).tolist()
    return {number: count for number, count in enumerate(counts) if count >= LEAST}
