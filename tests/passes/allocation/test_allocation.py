"""Allocations against what can be counted by hand on a small network."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.rule import Consumer
from graphprune.evaluation.masked_loss import Objective
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program
from graphprune.ir.weights import Masked
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.allocation.sensitivity import Sensitivity
from graphprune.passes.allocation.split import best_split
from graphprune.passes.analysis.find_groups import analyze
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.index_scores import rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.planning.masks import Gated
from graphprune.planning.plan import make
from graphprune.planning.ranking import Pool, chosen, hull, projected, ranked, top
from graphprune.solvers.normal_equations import DEFAULT_DAMPING
from graphprune.solvers.quick_refit import quickly_refitted
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import Moments


class Net(nn.Module):
    """Two feed-forward layers of different widths, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, n), "down": nn.Linear(n, 4)}) for n in (10, 6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer["down"](torch.relu(layer["up"](x)))  # type: ignore[index]
        return x


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    traced = trace(Net(), (x,))
    return traced.with_facts(analyze(traced), Calibration([[x]], "given", 1, 0, 0))


def shares(
    program: Program, name: str, target: int, scores: dict[str, Tensor] | None = None
) -> tuple[Budget, dict[str, float]]:
    found = program.fact(Dependencies)
    budget = Budget(found, [Knob.of([group]) for group in found.groups], target, program.parameters)
    given = scores or {g.name: torch.arange(1.0, g.size + 1)[None] for g in found.groups}
    evidence = Evidence(program, found, None)
    return budget, dict(ALLOCATIONS[name].shares(budget, given, evidence))


def test_ranks_are_means_over_rows() -> None:
    assert ranked(torch.tensor([[3.0, 1.0], [1.0, 2.0]])).tolist() == [1.0, 2.5]


def test_what_is_worth_least_goes_first_and_the_border_in_part() -> None:
    one = torch.ones(3, dtype=torch.float64)
    pool = Pool(torch.tensor([0, 1, 0]), one / 2, torch.tensor([1.0, 2.0, 1.0]).double(), torch.tensor([3.0, 1.0, 2.0]))
    assert pool.sorted().removed_shares(2, 0.25).tolist() == [0.0, 0.25]
    assert pool.sorted().removed_shares(2, 0.75).tolist() == [0.5, 0.5]
    assert pool.sorted().removed_shares(2, 1.0).tolist() == [1.0, 0.5]


def test_a_global_threshold_cuts_where_standardised_scores_are_low(program: Program) -> None:
    wide, narrow = program.fact(Dependencies).groups
    # One outlier makes the rest of the wide group low in deviations; in the narrow one half is low, half high.
    scores = {wide.name: torch.tensor([[0.0] * 9 + [100.0]]), narrow.name: torch.tensor([[0.0, 0, 0, 6, 6, 6]])}
    z = {name: (value - value.mean()) / value.std(correction=0) for name, value in scores.items()}
    assert wide.cost.parameters == narrow.cost.parameters == 9
    _, found = shares(program, "global", 3 * 9, scores)
    assert z[narrow.name].min() < z[wide.name].min()
    assert found[narrow.name] == pytest.approx(0.5) and found[wide.name] == pytest.approx(1)
    _, found = shares(program, "global", 8 * 9, scores)
    assert found[narrow.name] == pytest.approx(0.5) and found[wide.name] == pytest.approx(0.5)


def test_the_marginal_loss_is_equal_everywhere(program: Program) -> None:
    wide, narrow = program.fact(Dependencies).groups
    costs = {wide.name: torch.arange(1.0, 11)[None], narrow.name: torch.tensor([[2.5, 2.5, 2.5, 20, 20, 20]])}
    _, found = shares(program, "marginal", 5 * 9, costs)
    assert found[wide.name] == pytest.approx(0.8) and found[narrow.name] == pytest.approx(0.5)


def test_no_group_collapses_however_little_its_score_is(program: Program) -> None:
    wide, narrow = program.fact(Dependencies).groups
    scores = {wide.name: torch.ones(1, 10), narrow.name: torch.full((1, 6), 1e-9)}
    budget, found = shares(program, "marginal", 8 * 9, scores)  # half of all 16
    assert budget.uniform == pytest.approx(dict.fromkeys(found, 0.5))
    assert found[narrow.name] == pytest.approx(1 / 6) and found[wide.name] == pytest.approx(0.7)
    scores = {wide.name: torch.full((1, 10), 1e-9), narrow.name: torch.ones(1, 6)}
    _, found = shares(program, "marginal", 11 * 9, scores)  # half of 5/16, to whole indices
    assert found[wide.name] == pytest.approx(0.1) and found[narrow.name] == pytest.approx(4 / 6)


def test_variants_of_the_threshold_give_the_same_share_of_every_pool(program: Program) -> None:
    wide, narrow = program.fact(Dependencies).groups
    assert wide.kind == narrow.kind
    whole = shares(program, "global", 40)[1]
    assert shares(program, "global-layers", 40)[1] == pytest.approx(whole)
    by_layer = shares(program, "global-kinds", 40)[1]
    assert by_layer[wide.name] == pytest.approx(by_layer[narrow.name])


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("target", [9, 30, 100])
def test_the_budget_is_met_whatever_the_scores(
    program: Program, name: str, target: int, tiny: Callable[..., nn.Module]
) -> None:
    for value in (0.0, 1.0):
        found = program.fact(Dependencies)
        scores = {g.name: torch.full((1, g.size), value) for g in found.groups}
        budget, got = shares(program, name, target, scores)
        assert budget.removed(budget.widths(got)) == pytest.approx(target, abs=0.5)


def test_groups_end_at_equal_marginal_harm(program: Program) -> None:
    """By brute force over all pairs of widths none with the same budget does less harm, if harms add up."""
    assert hull([(0, 0), (1, 3), (2, 4), (3, 9)]) == [(0, 0), (2, 4), (3, 9)]
    wide, narrow = program.fact(Dependencies).groups
    judge = Objective.of(program)
    scores = {g.name: torch.arange(1.0, g.size + 1)[None] for g in (wide, narrow)}
    every = tuple((i + 1) / 30 for i in range(30))
    target = 5 * 9
    found = program.fact(Dependencies)
    budget = Budget(found, [Knob.of([g]) for g in (wide, narrow)], target, program.parameters)
    got = Sensitivity(every).shares(budget, scores, Evidence(program, found, None))

    def harm(group: Group, gone: int) -> float:
        return judge.loss({group.name: top(scores[group.name], group.size - gone)}) if gone else 0.0

    curves = {g.name: dict(hull([(n, harm(g, n)) for n in range(g.size)])) for g in (wide, narrow)}

    def convex(group: Group, gone: float) -> float:
        points = sorted(curves[group.name].items())
        return next(ya + (yb - ya) * (gone - a) / (b - a) for (a, ya), (b, yb) in pairwise(points) if gone <= b)

    gone = {g.name: (1 - got[g.name]) * g.size for g in (wide, narrow)}
    reached = sum(convex(g, gone[g.name]) for g in (wide, narrow))
    least = min(convex(wide, n) + convex(narrow, 5 - n) for n in range(6))
    assert reached <= least + 1e-6


def test_the_split_between_kinds_keeps_the_highest_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        worths = [torch.rand(n, generator=generator, dtype=torch.float64).sort().values for n in (6, 20)]
        pools = [
            Pool(torch.full_like(w, at).long(), torch.ones_like(w) / len(w), torch.full_like(w, cost), w)
            for at, (w, cost) in enumerate(zip(worths, (8.0, 2.0), strict=True))
        ]
        target = 40.0
        heads = min(range(6), key=lambda h: float(worths[0][:h].sum() + worths[1][: (40 - 8 * h) // 2].sum()))
        parts = best_split(pools, target, levels=5)  # every number of heads
        assert parts == pytest.approx([heads / 6, (40 - 8 * heads) / 40])


def test_a_wish_is_brought_to_the_budget_by_moving_all_alike(program: Program) -> None:
    groups = program.fact(Dependencies).groups
    budget = Budget(program.fact(Dependencies), [Knob.of([g]) for g in groups], 6 * 9, program.parameters)
    for wish in ([0.2, 0.6], [0.0, 0.0], [3.0, -1.0], [-0.5, 0.1]):
        gone = projected(budget, torch.tensor(wish, dtype=torch.float64))
        assert 10 * gone[0] + 6 * gone[1] == pytest.approx(6.0)
        inside = bool(((gone > 1e-9) & (gone < 1 - 1e-9)).all())
        assert not inside or gone[1] - gone[0] == pytest.approx(wish[1] - wish[0])


@pytest.mark.parametrize("name", ["evolutionary", "policy", "sensitivity"])
def test_a_search_spares_the_group_that_matters(name: str) -> None:
    """One layer adds noise of no size, the other makes the output: the first gives nearly everything."""
    torch.manual_seed(0)
    net, x = Net(), torch.randn(64, 4)
    with torch.no_grad():
        net.layers[0]["down"].weight *= 1e-3  # type: ignore[index]
        net.layers[0]["down"].bias *= 1e-3  # type: ignore[index]
    traced = trace(net, (x,))
    program = traced.with_facts(analyze(traced), Calibration([[x]], "given", 1, 0, 0))
    wide, narrow = program.fact(Dependencies).groups
    budget, found = shares(program, name, 5 * 9)
    judge = Objective.of(program)
    scores = {g.name: torch.arange(1.0, g.size + 1)[None] for g in (wide, narrow)}
    uniform = judge.loss(chosen(budget.knobs, scores, shares(program, "uniform", 5 * 9)[1]))
    assert found[narrow.name] > found[wide.name]
    assert judge.loss(chosen(budget.knobs, scores, found)) < 0.5 * uniform
    assert found == shares(program, name, 5 * 9)[1]


class Unequal(nn.Module):
    """Neurons whose outputs are `loud` times as large, and latent dimensions."""

    def __init__(self, loud: float) -> None:
        super().__init__()
        self.first, self.up = nn.Linear(4, 8), nn.Linear(4, 8)
        self.second, self.down = nn.Linear(8, 4), nn.Linear(8, 4)
        self.loud = loud

    def forward(self, x: Tensor) -> Tensor:
        loud: Tensor = self.loud * self.second(torch.relu(self.first(x)))
        quiet: Tensor = self.down(self.up(x))
        return loud + quiet


def test_kinds_are_balanced_where_scores_are_wrong_by_a_factor() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    traced = trace(Unequal(10.0), (x,))
    program = traced.with_facts(analyze(traced), Calibration([[x]], "given", 1, 0, 0))
    groups = program.fact(Dependencies).groups
    names = [group.name for group in groups]
    assert {group.label for group in groups} == {"neurons", "latent dimensions"}
    loud = next(name for name in names if name.startswith("first"))
    scores = {name: torch.arange(1.0, 9)[None] * (0.2 if name == loud else 1.0) for name in names}
    losses = {}
    for by in ("marginal", "balanced"):
        budget, found = shares(program, by, 6 * 9, scores)
        assert budget.removed(budget.widths(found)) == pytest.approx(6 * 9, abs=0.5)
        losses[by] = Objective.of(program).loss(chosen(budget.knobs, scores, found)), found[loud]
    assert losses["marginal"][1] == 0.375 and losses["balanced"][1] > 0.5
    assert losses["balanced"][0] < 0.85 * losses["marginal"][0]


def test_a_trial_has_the_least_squares_weights_of_every_layer(program: Program) -> None:
    (x,) = program.fact(Calibration).batches[0]
    found = program.fact(Dependencies)
    rows = {group.name: top(torch.arange(1.0, group.size + 1)[None], group.size - 3) for group in found.groups}
    inputs = {}
    for i in range(2):
        (up, b), (down, c) = ([program.weights[f"layers.{i}.{name}.{p}"] for p in ("weight", "bias")]
                              for name in ("up", "down"))  # fmt: skip
        hidden = torch.relu(linear(x, up, b))
        inputs[f"layers.{i}.down.weight"], x = hidden, x + linear(hidden, down, c)

    def moments(consumer: Consumer) -> Moments:
        seen = Moments.empty(len(program.weights[consumer.weight][0]))
        seen.add(inputs[consumer.weight])
        return seen

    new = quickly_refitted(program, rows, moments)
    assert new.keys() == inputs.keys()
    for name, hidden in inputs.items():
        weight, kept = program.weights[name].double(), torch.arange(3, hidden.shape[1])
        gram = hidden.double().T @ hidden.double()
        ridge = DEFAULT_DAMPING * gram.diagonal().mean() * torch.eye(len(kept), dtype=torch.float64)
        change = torch.linalg.solve(gram[kept][:, kept] + ridge, gram[kept][:, :3] @ weight[:, :3].T).T
        assert torch.allclose(new[name][:, kept].double(), weight[:, kept] + change, atol=1e-5)
    objective = Objective.of(program)
    assert objective.loss(rows, new) < 0.9 * objective.loss(rows)
    assert not quickly_refitted(program, rows, lambda consumer: None)


def test_masks_are_laid_over_parameters_as_plans_are(tiny: Callable[..., nn.Module]) -> None:
    """Of every parameter what a plan leaves out is zero under the mask, and the rest as it was; linked rows too."""
    ids = torch.randint(3, 60, (2, 8))
    program = trace(tiny("llama", use_cache=False), (), {"input_ids": ids})
    found = analyze(program)
    generator = torch.Generator().manual_seed(0)
    for group in found.groups:
        scores = torch.rand(rows_of(group, found), group.size, generator=generator)
        rows = top(scores, max(group.size // 2, group.least))
        mask = torch.zeros_like(scores).scatter(1, torch.tensor(rows), 1.0)
        gated, plan = Gated(program.weights, found, {group.name: mask}), make(program, found, {group.name: rows})
        masked = Masked(program.weights, plan.keep)
        assert all(torch.equal(gated[place.parameter], masked[place.parameter]) for place in group.places)


def test_rates_are_learned_within_a_layer() -> None:
    """Of two groups of a layer the one that does nothing gives more; the layers give equally much."""
    torch.manual_seed(0)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"a": Feed(), "b": Feed()}) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer["a"](x)  # type: ignore[index]
                x = x + layer["b"](x)  # type: ignore[index]
            return x

    net, x = Pair(), torch.randn(64, 4)
    nn.init.zeros_(net.get_parameter("layers.0.a.down.weight"))
    nn.init.zeros_(net.get_parameter("layers.1.b.down.weight"))
    traced = trace(net, (x,))
    program = traced.with_facts(analyze(traced), Calibration([[x], [x.flip(0)]], "given", 2, 0, 0))
    groups = program.fact(Dependencies).groups
    assert [(g.layer, g.size) for g in groups] == [("0", 12), ("0", 12), ("1", 12), ("1", 12)]
    for name in ("besa", "besa-global"):
        got = [shares(program, name, 16 * 9)[1][g.name] for g in groups]
        assert got[0] < got[1] - 0.2 and got[3] < got[2] - 0.2
        assert name == "besa-global" or got[0] + got[1] == pytest.approx(got[2] + got[3], abs=0.1)


class Feed(nn.Module):
    """A feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]
