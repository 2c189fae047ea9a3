"""The refits: identities in double precision, and biases that a layer did not have."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import CalibrationError, PlanError, WriteBackError
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.reconstructions.refit import Refit
from graphprune.passes.reconstructions.sequential_refit import fill
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.passes.verification.verify import Verify
from graphprune.planning.facts import Refits
from graphprune.planning.interfaces import Refitted
from graphprune.solvers.normal_equations import NormalEquations, ridge_solve
from graphprune.statistics.moments import Drift, Moments

KEPT = torch.tensor([0, 2, 3, 5, 7])
GONE = torch.tensor([1, 4, 6])


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor]:
    """A weight, shape (5, 8), and inputs, shape (200, 8), with means and correlations; in double precision."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(8) + 0.3 * torch.randn(8, 8, generator=generator)
    x = (torch.randn(200, 8, generator=generator) + 0.5) @ mixing
    return torch.randn(5, 8, generator=generator).double(), x.double()


def moments(x: Tensor) -> Moments:
    found = Moments.empty(x.shape[1])
    found.add(x)
    return found


def refit(name: str, problem: tuple[Tensor, Tensor], kept: Tensor = KEPT) -> Refitted:
    return RECONSTRUCTIONS[name].refit(problem[0], kept, moments(problem[1]), None, 0.0)


def output(x: Tensor, found: Refitted, kept: Tensor = KEPT) -> Tensor:
    return x[:, kept] @ found.weight.T + (0 if found.bias is None else found.bias)


def test_affine_is_least_squares_with_a_column_of_ones(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    ones = torch.cat([x[:, KEPT], torch.ones(200, 1).double()], 1)
    direct = torch.linalg.lstsq(ones, x @ w.T).solution.T
    found = refit("affine", problem)
    assert found.bias is not None
    same(torch.cat([found.weight, found.bias[:, None]], 1), direct)


def test_affine_interpolates_what_was_removed(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    mean, covariance = x.mean(0), x.T.cov(correction=0)
    q = covariance[GONE][:, KEPT] @ covariance[KEPT][:, KEPT].inverse()
    p = mean[GONE] - q @ mean[KEPT]
    found = refit("affine", problem)
    assert found.bias is not None
    same(found.weight, w[:, KEPT] + w[:, GONE] @ q)
    same(found.bias, w[:, GONE] @ p)


def test_without_means_affine_is_least_squares(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    still = w, x - x.mean(0)
    same(refit("affine", still).weight, refit("least-squares", still).weight)


@pytest.mark.parametrize("j", range(8))
def test_a_bias_leaves_the_variance_of_what_was_removed(problem: tuple[Tensor, Tensor], j: int) -> None:
    w, x = problem
    kept = torch.tensor([i for i in range(8) if i != j])
    found = refit("bias", problem, kept)
    lost = (x @ w.T - output(x, found, kept)).square().sum()
    assert found.bias is not None
    same(found.bias, w[:, j] * x[:, j].mean())
    same(lost, 200 * x[:, j].var(correction=0) * w[:, j].square().sum())


def test_mask_tuning_is_the_stacked_least_squares_problem(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    stacked = torch.stack([x[:, [j]] * w[:, j] for j in KEPT], 2).flatten(0, 1)  # (tokens * outputs, kept)
    direct = torch.linalg.lstsq(stacked, (x @ w.T).flatten()[:, None]).solution[:, 0]
    same(refit("mask", problem).weight, w[:, KEPT] * direct)
    s = x.T @ x
    a, r = (w[:, KEPT].T @ w[:, KEPT]) * s[KEPT][:, KEPT], (w.T @ w * s)[KEPT].sum(1)
    same(direct, torch.linalg.solve(a, r))


@pytest.mark.parametrize("seed", range(4))
def test_more_freedom_never_leaves_more_error(problem: tuple[Tensor, Tensor], seed: int) -> None:
    kept = torch.randperm(8, generator=torch.Generator().manual_seed(seed))[:4].sort().values
    lost = {
        name: refit(name, problem, kept).error_after for name in ("none", "bias", "mask", "least-squares", "affine")
    }
    assert lost["none"] >= lost["bias"] >= lost["affine"] - 1e-12
    assert lost["none"] >= lost["mask"] >= lost["least-squares"] - 1e-12 >= lost["affine"] - 2e-12
    w, x = problem
    for name, said in lost.items():
        direct = (x @ w.T - output(x, refit(name, problem, kept), kept)).square().sum() / (x @ w.T).square().sum()
        assert said == pytest.approx(float(direct), rel=1e-9)


def test_a_drift_moves_the_aim(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    shift = 0.1 * torch.randn(200, 5, generator=torch.Generator().manual_seed(3)).double() + 0.05
    seen = moments(x)
    seen.drift = Drift.of(x[:120], shift[:120]) + Drift.of(x[120:], shift[120:])
    target = x @ w.T + shift
    found = RECONSTRUCTIONS["least-squares"].refit(w, KEPT, seen, None, 0.0)
    same(found.weight, torch.linalg.lstsq(x[:, KEPT], target).solution.T)
    whole = (x @ w.T).square().sum()
    assert found.error_after * whole == pytest.approx(float((output(x, found) - target).square().sum()), rel=1e-9)
    ones = torch.cat([x[:, KEPT], torch.ones(200, 1).double()], 1)
    affine = RECONSTRUCTIONS["affine"].refit(w, KEPT, seen, None, 0.0)
    same(affine.weight, torch.linalg.lstsq(ones, target).solution.T[:, :-1])
    assert affine.error_after * whole == pytest.approx(float((output(x, affine) - target).square().sum()), rel=1e-9)


def test_taking_out_the_mean_changes_no_error(problem: tuple[Tensor, Tensor]) -> None:
    found = NormalEquations.of(problem[0], KEPT, moments(problem[1]))
    c = 0.1 * found.retained_weight
    assert found.error(c, found.bias(c)) == pytest.approx(found.centered.error(c), rel=1e-10)


class Bare(nn.Module):
    """Layers without biases, of both kinds that take one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12, bias=False), nn.Linear(12, 8, bias=False)
        self.c, self.d = nn.Conv1d(8, 10, 1, bias=False), nn.Conv1d(10, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.b(torch.sigmoid(self.a(x))))
        return self.d(torch.sigmoid(self.c(y.transpose(1, 2))))  # type: ignore[no-any-return]


def bare() -> Bare:
    torch.manual_seed(0)
    return Bare()


def calls(dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(((torch.randn(4, 5, 6, generator=generator).to(dtype),), {}) for _ in range(9))


def cut(module: nn.Module, x: Tensor, protect: tuple[str, ...] = ()) -> Program:
    stems = ("stem*",) if hasattr(module, "stem") else ()
    steps = (
        gp.Analyze(protect=stems + protect),
        Calibrate(batches=calls(x.dtype)),
        gp.Score("magnitude"),
        gp.Allocate(ratio=0.5),
    )
    return gp.Pipeline((*steps, gp.Select(), gp.Rewrite()))(gp.trace(module, (x,)))


@pytest.mark.parametrize("name", ["bias", "affine"])
def test_layers_get_biases_in_the_graph_and_in_the_module(name: str) -> None:
    module, x = bare(), torch.randn(2, 5, 6)
    small = cut(module, x)
    refitted = Verify()(Refit(name)(small))
    new = refitted.parameters - small.parameters
    assert new == {"b.bias", "c.bias", "d.bias"} == set(refitted.fact(Refits).biases.values())
    assert refitted.count() == small.count() + sum(refitted.weights[n].numel() for n in new)
    assert refitted.fact(Verification).max_error <= 1e-4
    assert refitted.module().state_dict().keys() >= new
    before = module(x)
    error = [(program.module()(x) - before).square().mean() for program in (small, refitted)]
    assert error[1] < 0.7 * error[0]
    refitted.write_back(module)
    assert isinstance(module.b.bias, nn.Parameter) and module.a.bias is None
    torch.testing.assert_close(module(x), refitted.module()(x))


def test_a_module_that_has_no_place_for_a_bias_is_left_as_it_was() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 6))
            self.last = nn.Parameter(torch.randn(3, 8))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(torch.sigmoid(nn.functional.linear(x, self.weight)), self.last)

    module, x = Plain(), torch.randn(2, 5, 6)
    refitted = Refit("bias")(cut(module, x))
    assert "last_bias" in refitted.parameters
    assert gp.analyze(refitted).groups
    with pytest.raises(WriteBackError, match=r"no parameter or buffer last_bias.*program\.module"):
        refitted.write_back(module)
    assert module.last.shape == (3, 8)


def test_operators_that_take_no_bias_are_named_before_and_after() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(x)) @ self.w

    module, x = Product(), torch.randn(2, 5, 6)
    with pytest.raises(PlanError, match=r"refit bias adds a bias.*w can have none: its operator takes no bias"):
        passes = "analyze | calibrate | score | allocate{ratio=0.5} | select | rewrite | refit{by=bias}"
        gp.Pipeline.parse(passes)(gp.trace(module, (x,)))  # before calibration data are missed
    found = Refit("bias")(cut(module, x)).fact(Refits)
    assert found.skipped == {"w": "its operator takes no bias that is a parameter"} and not found.by_weight


class Residual(nn.Module):
    """Two residual branches, so that the stream keeps its width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.c, self.d = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(torch.sigmoid(self.a(x)))
        return x + self.d(torch.sigmoid(self.c(x)))  # type: ignore[no-any-return]


def test_mixed_statistics_aim_at_what_the_layer_makes_in_the_dense_model() -> None:
    torch.manual_seed(0)
    module = Residual()
    small = cut(module, torch.randn(2, 5, 6))
    refits = [Refit(statistics="mixed", mix=mix, damping=0.0)(small) for mix in (0.0, 0.5, 1.0)]
    none, some, every = (refitted.weights["d.weight"] for refitted in refits)
    torch.testing.assert_close(none, Refit(damping=0.0)(small).weights["d.weight"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(some, (none + every) / 2, rtol=1e-3, atol=1e-4)
    weights = refits[2].weights
    inputs, targets = [], []
    for (batch,), _ in calls():
        x = module.stem(batch)
        y = x + torch.sigmoid(x @ weights["a.weight"].T + weights["a.bias"]) @ weights["b.weight"].T + module.b.bias
        inputs.append(torch.sigmoid(y @ weights["c.weight"].T + weights["c.bias"]).flatten(0, 1))
        dense = x + module.b(torch.sigmoid(module.a(x)))
        targets.append((torch.sigmoid(module.c(dense)) @ module.d.weight.T).flatten(0, 1))
    direct = torch.linalg.lstsq(torch.cat(inputs).double(), torch.cat(targets).double()).solution.T
    torch.testing.assert_close(every.double(), direct.detach(), rtol=1e-3, atol=1e-3)


class Twice(Residual):
    """A map between the branches that keeps all its indices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_two = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.stem_two(x + self.b(torch.sigmoid(self.a(x))))
        return x + self.d(torch.sigmoid(self.c(x)).view(-1, 12)).view(x.shape)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mix", [0.0, 0.25])
def test_a_branch_makes_up_for_what_the_stream_has_lost(mix: float) -> None:
    torch.manual_seed(0)
    module = Twice().double()
    small = cut(module, torch.randn(2, 5, 6).double())
    found = Refit(statistics="mixed", mix=mix, residual=True, others=True, damping=0.0)(small).weights
    kept = small.fact(Rewritten).keep["d.weight"][1]
    rows: dict[str, list[Tensor]] = {"before": [], "between": [], "inside": [], "aim": []}
    for (x,), _ in calls(torch.float64):
        x = module.stem(x)
        branch = torch.sigmoid(x @ small.weights["a.weight"].T + small.weights["a.bias"])
        sums = x + module.b(torch.sigmoid(module.a(x))), x + branch @ found["b.weight"].T + module.b.bias
        dense, seen = module.stem_two(sums[0]), sums[1] @ found["stem_two.weight"].T
        rows["before"].append(sums[1])
        rows["between"].append(dense)
        inside = [torch.sigmoid(module.c(y)) for y in (dense, seen)]
        rows["inside"].append(inside[1][..., kept])
        rows["aim"].append(dense - seen + (mix * inside[0] + (1 - mix) * inside[1]) @ module.d.weight.T)
    before, between, inside_kept, aim = (torch.cat(parts).flatten(0, 1).detach() for parts in rows.values())
    same(found["stem_two.weight"], torch.linalg.lstsq(before, between).solution.T)
    same(found["d.weight"], torch.linalg.lstsq(inside_kept, aim).solution.T)


def test_a_token_counts_relative_to_its_sum_and_a_whole_branch_is_fitted_too() -> None:
    torch.manual_seed(0)
    module = Residual().double()
    small = cut(module, torch.randn(2, 5, 6).double(), ("c.*",))
    assert "d.weight" not in small.fact(Rewritten).keep
    found = Refit(statistics="mixed", mix=1.0, residual=True, relative=True, damping=0.0)(small).weights
    parts: list[tuple[Tensor, ...]] = []
    for (x,), _ in calls(torch.float64):
        x = module.stem(x)
        added = torch.sigmoid(module.a(x)) @ module.b.weight.T
        branch = torch.sigmoid(x @ small.weights["a.weight"].T + small.weights["a.bias"])
        dense, seen = (x + y + module.b.bias for y in (added, branch @ found["b.weight"].T))
        outputs = dense + torch.sigmoid(module.c(dense)) @ module.d.weight.T
        parts.append((branch, added, x + added, torch.sigmoid(module.c(seen)), outputs - seen, outputs))
    values = [torch.cat(rows).flatten(0, 1).detach() for rows in zip(*parts, strict=True)]
    for name, (inputs, aim, sums) in {"b.weight": values[:3], "d.weight": values[3:]}.items():
        roots = sums.square().mean(1, keepdim=True).rsqrt()
        direct = torch.linalg.lstsq(inputs * roots, aim * roots).solution.T
        torch.testing.assert_close(found[name], direct, rtol=1e-6, atol=1e-8)


def test_producers_are_brought_back_to_what_they_made() -> None:
    torch.manual_seed(0)
    module = Residual()
    small = cut(module, torch.randn(2, 5, 6))
    one, two = (Refit(statistics="mixed", mix=0.25, producers=step) for step in (False, True))
    refitted = two(small)
    weights, kept = refitted.weights, refitted.fact(Rewritten).keep["c.weight"][0]
    inputs, targets = [], []
    for (x,), _ in calls():
        y = module.stem(x)
        hidden = torch.sigmoid(y @ weights["a.weight"].T + weights["a.bias"])
        inputs.append((y + hidden @ weights["b.weight"].T + module.b.bias).flatten(0, 1))
        targets.append(((y + module.b(torch.sigmoid(module.a(y)))) @ module.c.weight.T).flatten(0, 1))
    seen, target = (torch.cat(parts).double().detach() for parts in (inputs, targets))
    both = weights["c.weight"], small.weights["c.weight"]
    errors = [(seen @ w.double().T - target[:, kept]).square().mean() for w in both]
    assert errors[0] < 0.7 * errors[1]
    assert {"a.weight", "c.weight"} <= refitted.fact(Refits).by_weight.keys()
    assert torch.equal(weights["a.weight"], small.weights["a.weight"])  # its inputs are as they were
    x = torch.randn(64, 5, 6, generator=torch.Generator().manual_seed(5))
    lost = [(step(small).module()(x) - module(x)).square().mean() for step in (one, two)]
    assert lost[1] < 1.1 * lost[0]
    with pytest.raises(CalibrationError, match="need statistics=mixed"):
        Refit(producers=True)(small)


def test_a_stream_that_became_narrower_shows_what_the_pruned_model_sees() -> None:
    module, x = bare().double(), torch.randn(2, 5, 6).double()
    small = cut(module, x)
    refitted = Refit(statistics="mixed", mix=1.0, damping=0.0)(small).weights
    inputs, targets = [], []
    for (x,), _ in calls(torch.float64):
        y = torch.relu(torch.sigmoid(x @ refitted["a.weight"].T) @ refitted["b.weight"].T)
        inputs.append(torch.sigmoid(y @ refitted["c.weight"][:, :, 0].T).flatten(0, 1))
        targets.append(module(x).transpose(1, 2).flatten(0, 1))
    seen, target = torch.cat(inputs), torch.cat(targets).detach()
    best = seen @ torch.linalg.lstsq(seen, target).solution  # the weights themselves are less certain
    torch.testing.assert_close(seen @ refitted["d.weight"][:, :, 0].T, best, rtol=0, atol=1e-6)


def test_rounding_that_makes_eigenvalues_negative_stops_no_refit() -> None:
    flat = torch.ones(4, 4).double() - 1e-9 * torch.eye(4).double()
    assert torch.isfinite(ridge_solve(flat, torch.ones(4, 1).double(), 0.0)).all()


def test_a_value_is_filled_where_indices_stay() -> None:
    wide, small = torch.arange(24.0).view(2, 3, 4), -torch.ones(2, 2, 2)
    each = torch.tensor([[0, 1], [2, 3], [1, 3]])[None]  # other indices of the last dimension in each of the second
    found = fill(wide, small, {2: each, 1: torch.tensor([0, 2])})
    expected = wide.clone()
    expected[:, 0, :2] = expected[:, 2, 1] = expected[:, 2, 3] = -1
    same(found, expected)


def test_a_cut_that_is_made_anew_has_no_biases() -> None:
    small = cut(bare(), torch.randn(2, 5, 6))
    again = rewrite(small.fact(Rewritten).original, small.fact(gp.Plan))
    assert again.parameters == small.parameters
