"""Low rank in double precision: pivoting is exact, truncation is optimal, and alternating never makes it worse."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from graphprune.solvers.normal_equations import DAMPINGS, NormalEquations
from graphprune.solvers.pivoted_factors import (
    Pivoted,
    alternating_least_squares,
    exact_factors,
    factor_parameters,
    rank_for_density,
    reconstruct_low_rank,
    reduced_rank_regression,
    weighted_regression,
)
from graphprune.statistics.moments import Drift, Moments


def matrix(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(tokens: int, n: int, seed: int = 7) -> Tensor:
    """Some features are large, and all are correlated."""
    return matrix(tokens, n, seed) @ (matrix(n, n, seed + 1) * torch.logspace(0, -2, n, dtype=torch.float64))


def moments(x: Tensor, shift: Tensor | None = None) -> Moments:
    found = Moments.empty(x.shape[1])
    found.add(x)
    if shift is not None:
        found.drift = Drift.of(x, shift)
    return found


def equations(w: Tensor, found: Moments) -> NormalEquations:
    return NormalEquations.of(w, torch.arange(w.shape[1]), found)


@pytest.mark.parametrize(("m", "n", "rank"), [(9, 6, 3), (6, 9, 5), (7, 7, 1), (40, 24, 24), (1, 5, 1)])
def test_pivoting_holds_every_matrix_of_its_rank(m: int, n: int, rank: int) -> None:
    left, right = matrix(m, rank), matrix(rank, n, 1)
    found = Pivoted.of(left, right)
    torch.testing.assert_close(found.product, left @ right, rtol=1e-12, atol=1e-12)
    assert found.rows.numel() + found.coefficients.numel() == factor_parameters(m, n, rank) <= m * n
    assert all(any(torch.allclose(row, other) for other in left @ right) for row in found.rows)


def test_pivoting_holds_matrices_of_a_lower_rank_than_asked_for() -> None:
    left = torch.cat([matrix(8, 2), torch.zeros(8, 2, dtype=torch.float64)], 1)
    for product in (left, torch.zeros(8, 4, dtype=torch.float64)):
        right = matrix(4, 5, 1)
        torch.testing.assert_close(Pivoted.of(product, right).product, product @ right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("m", "n"), [(1, 7), (3, 8), (8, 3), (64, 64), (172, 64)])
@pytest.mark.parametrize("step", [1, 4])
def test_ranks_are_the_greatest_that_a_density_allows(m: int, n: int, step: int) -> None:
    most = min(m, n)
    for density in (0.0, 0.1, 0.5, 0.8, 0.99):
        allowed = [r for r in range(step, most, step) if factor_parameters(m, n, r) <= density * m * n]
        assert rank_for_density(m, n, density, step) == max(allowed, default=min(step, most))
    assert rank_for_density(m, n, 1.0, step) == most and factor_parameters(m, n, most) == m * n


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_whitened_truncation_costs_the_tail_of_singular_values(rank: int) -> None:
    w, x = matrix(6, 8), inputs(50, 8)
    left, right = reduced_rank_regression(equations(w, moments(x)), rank, 0.0)
    lost = (x @ (w - left @ right).T).square().sum()
    values, vectors = torch.linalg.eigh(x.T @ x)
    half = vectors @ values.sqrt().diag() @ vectors.T
    tail = torch.linalg.svdvals(w @ half)[rank:].square().sum()
    torch.testing.assert_close(lost, tail, rtol=1e-9, atol=0)
    for seed in range(20):  # nothing beside it is better
        other = left @ right + 0.1 * (matrix(6, rank, seed) @ right + left @ matrix(rank, 8, seed + 1))
        assert (x @ (w - other).T).square().sum() > lost


def test_alternating_never_makes_it_worse_and_ends_where_the_regression_is() -> None:
    w, x = matrix(6, 8), inputs(60, 8)
    aims = moments(x, 0.3 * matrix(60, 8, 3) @ w.T)
    problem = equations(w, aims)
    errors = [
        problem.error(torch.matmul(*alternating_least_squares(n)(problem, 3, 0.0)) - w) for n in (0, 1, 2, 5, 20, 400)
    ]
    best = problem.error(torch.matmul(*reduced_rank_regression(problem, 3, 0.0)) - w)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(errors))
    assert errors[0] > 1.01 * best and errors[-1] == pytest.approx(best, rel=1e-6)


def test_the_fit_aims_at_the_outputs_of_other_inputs() -> None:
    w, x = matrix(5, 4), inputs(80, 4)
    shift = 0.2 * matrix(80, 4, 9)
    found, result = reconstruct_low_rank(
        w, torch.arange(w.shape[1]), 4, moments(x, shift @ w.T), None, 0.0, reduced_rank_regression
    )
    direct = torch.linalg.lstsq(x, (x + shift) @ w.T).solution.T
    torch.testing.assert_close(found.product, direct, rtol=1e-9, atol=1e-9)
    assert result.error_after < result.error_before


def test_damping_is_chosen_on_what_was_held_out() -> None:
    w = matrix(6, 8)
    few = moments(inputs(9, 8), matrix(9, 8, 4) @ w.T)
    held = moments(inputs(40, 8, 20), 0.1 * matrix(40, 8, 5) @ w.T)

    def missed(damping: float) -> float:
        return equations(w, held).error(torch.matmul(*reduced_rank_regression(equations(w, few), 4, damping)) - w)

    _, result = reconstruct_low_rank(w, torch.arange(w.shape[1]), 4, few, held, None, reduced_rank_regression)
    assert result.damping == min(DAMPINGS, key=missed) and missed(result.damping) < missed(DAMPINGS[0])


def test_what_is_left_of_the_columns_takes_over_at_its_rank() -> None:
    w, x, kept = matrix(5, 6), inputs(80, 6), torch.tensor([0, 2, 3, 5])
    found, result = reconstruct_low_rank(w, kept, 3, moments(x), None, 0.0, reduced_rank_regression)
    best = torch.linalg.lstsq(x[:, kept], x @ w.T).solution.T
    half = torch.linalg.cholesky(x[:, kept].T @ x[:, kept])
    u, s, v = torch.linalg.svd(best @ half, full_matrices=False)
    wanted = u[:, :3] * s[:3] @ v[:3] @ torch.linalg.inv(half)
    torch.testing.assert_close(found.product, wanted, rtol=1e-7, atol=1e-7)
    assert result.error_after < result.error_before


def test_what_has_the_rank_already_is_taken_apart() -> None:
    w = matrix(9, 3) @ matrix(3, 7, 1)
    torch.testing.assert_close(exact_factors(w, 3).product, w, rtol=1e-10, atol=1e-10)


def test_full_rank_without_drift_is_the_weight() -> None:
    w = matrix(6, 4)
    found, result = reconstruct_low_rank(
        w, torch.arange(w.shape[1]), 4, moments(inputs(30, 4)), None, None, reduced_rank_regression
    )
    torch.testing.assert_close(found.product, w, rtol=1e-10, atol=1e-10)
    assert result.error_after == pytest.approx(0.0, abs=1e-12)


def test_errors_of_a_low_rank_are_weighed_by_the_metric_of_the_outputs() -> None:
    w, x, root = matrix(7, 5), inputs(60, 5), matrix(7, 7, 3).tril() + 4 * torch.eye(7, dtype=torch.float64)
    shift = matrix(60, 7, 4)
    system = equations(w, moments(x, shift))
    left, right = weighted_regression(root)(system, 2, 0.0)
    scaled = equations(root.T @ w, moments(x, shift @ root))  # the same outputs in coordinates without a metric
    plain = torch.matmul(*reduced_rank_regression(scaled, 2, 0.0))
    torch.testing.assert_close(root.T @ left @ right, plain, rtol=1e-9, atol=1e-9)
    same = torch.matmul(*weighted_regression(torch.eye(7, dtype=torch.float64))(system, 2, 0.0))
    torch.testing.assert_close(same, torch.matmul(*reduced_rank_regression(system, 2, 0.0)), rtol=1e-9, atol=1e-9)
