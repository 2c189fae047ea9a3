"""Small differences pass where rounding reaches as far, and nowhere else."""

import copy
import logging
from math import inf

import pytest
import torch
from torch import Tensor, nn

from graphprune.errors import VerificationError
from graphprune.execution.output_comparison import compare
from graphprune.execution.rounding_check import compare_closely, require_rounding

X = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))


def network(depth: int = 4) -> nn.Module:
    """Linear layers with gates between them."""
    torch.manual_seed(1)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(24, 24), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(24, 7))


def noisy(module: nn.Module, share: float) -> nn.Module:
    """A copy whose weights have errors of a share of their size."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + share * torch.randn_like(weight))
    return other


@torch.no_grad()
def test_noise_in_weights_is_refused_where_a_fixed_tolerance_passes_it() -> None:
    module = network()
    other = noisy(module, 1e-4)
    assert compare(module(X), other(X), "both").max_error > 1e-5
    with pytest.raises(VerificationError, match="both: beyond rounding, they differ by .* of the typical value"):
        compare_closely(module(X), other(X), "both", lambda: other(X))


@torch.no_grad()
def test_other_orders_of_the_same_sums_pass() -> None:
    module = network(12)
    exact = copy.deepcopy(module).double()(X.double()).float()
    assert compare_closely(exact, module(X), "both", lambda: module(X)).max_error < 1e-4


class FarApart(nn.Module):
    """Small differences of large numbers, which rounding changes by much."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 3e3) - 3e3


def test_differences_of_large_numbers_pass() -> None:
    module = FarApart()
    require_rounding(X, module(X), "both", lambda: module(X), greatest=inf)
    with pytest.raises(VerificationError, match="beyond rounding"):
        require_rounding(X, module(X), "both", lambda: module(X))


def test_a_run_that_cannot_be_watched_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def again() -> Tensor:
        raise NotImplementedError("no mode")

    with caplog.at_level(logging.WARNING):
        compare_closely(X, X * (1 + 5e-5), "both", again)
    assert "both: rounding was not estimated, so small differences passed (reason: no mode" in caplog.text
