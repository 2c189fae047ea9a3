"""Intervals of paired measurements: known values, and how often they hold the truth."""

from math import exp, log, sqrt

import pytest
import torch

from graphprune.statistics.paired import PairedSamples


def test_a_counted_quantity_is_exact() -> None:
    ratio = PairedSamples.exact(50).relative_to(PairedSamples.exact(200))
    assert (ratio.value, ratio.low, ratio.high) == (0.25, 0.25, 0.25)


def test_the_ratio_of_perplexities_has_the_interval_of_a_mean_of_differences() -> None:
    dense, pruned = (
        PairedSamples((1.0, 2.0, 3.0, 4.0), logarithms=True),
        PairedSamples((1.1, 2.2, 3.1, 4.2), logarithms=True),
    )
    ratio = pruned.relative_to(dense)
    error = 2.353 * sqrt(0.01 / 3) / 2  # Student's quantile at 95 % for 3 degrees of freedom
    assert ratio.value == pytest.approx(exp(0.15))
    assert log(ratio.high) == pytest.approx(0.15 + error, rel=0.02)
    assert log(ratio.low) == pytest.approx(0.15 - error, rel=0.02)
    assert ratio.worst(lower=True) == ratio.high and ratio.worst(lower=False) == ratio.low


def test_batches_count_by_their_sizes() -> None:
    estimate = PairedSamples((1.0, 0.0), (30.0, 10.0)).estimate()
    assert estimate.value == pytest.approx(0.75)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    below, trials = 0, 600
    for _ in range(trials):
        right = (torch.rand(2, 24, generator=generator) < torch.tensor([[0.9], [0.8]])).double()
        ratio = PairedSamples(tuple(right[1].tolist())).relative_to(PairedSamples(tuple(right[0].tolist())))
        below += ratio.low > 0.8 / 0.9
    assert 0.02 < below / trials < 0.09
