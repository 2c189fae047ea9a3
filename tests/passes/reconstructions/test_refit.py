"""The refit: identities in double precision, and the walk over segments of a network."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.execution.segments import Constants, run, split
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.reconstructions.least_squares import LeastSquares
from graphprune.passes.reconstructions.refit import Refit
from graphprune.planning.facts import Refits
from graphprune.solvers.normal_equations import DAMPINGS, NormalEquations
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import Moments


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.fixture
def problem() -> tuple[Tensor, Tensor]:
    """A weight, shape (5, 8), and inputs, shape (200, 8), of some correlation; in double precision."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(8) + 0.3 * torch.randn(8, 8, generator=generator)
    x = torch.randn(200, 8, generator=generator).double() @ mixing.double()
    return torch.randn(5, 8, generator=generator).double(), x


def moments(x: Tensor) -> Moments:
    found = Moments.empty(x.shape[1])
    found.add(x)
    return found


def system(w: Tensor, kept: Tensor, s: Tensor) -> NormalEquations:
    return NormalEquations.of(w, kept, Moments(s, torch.zeros(len(s)).double()))


def solve(w: Tensor, kept: Tensor, s: Tensor, damping: float) -> Tensor:
    """The kept columns after least squares, from the second moments alone."""
    return w[:, kept] + system(w, kept, s).correction(damping)


def error(w: Tensor, new: Tensor, kept: Tensor, s: Tensor) -> float:
    """The squared error of the output, relative to the output."""
    found = system(w, kept, s)
    return found.error(new - w[:, kept]) / found.output_energy


def test_least_squares_solves_the_normal_equations(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    kept = torch.tensor([0, 2, 3, 5, 7])
    direct = torch.linalg.lstsq(x[:, kept], x @ w.T).solution.T
    same(solve(w, kept, x.T @ x, 0.0), direct)
    s, ridge = x.T @ x, 0.1 * (x.T @ x).diagonal().mean() * torch.eye(5).double()
    damped = (
        w[:, kept]
        + torch.linalg.solve(s[kept][:, kept] + ridge, (w @ s)[:, kept].T - s[kept][:, kept] @ w[:, kept].T).T
    )
    same(solve(w, kept, s, 0.1), damped)


def test_removing_one_column_costs_what_the_inverse_says(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    s = x.T @ x
    inverse = torch.linalg.inv(s)
    for j in range(8):
        kept = torch.tensor([i for i in range(8) if i != j])
        lost = (x @ w.T - x[:, kept] @ solve(w, kept, s, 0.0).T).square().sum()
        torch.testing.assert_close(lost, w[:, j].square().sum() / inverse[j, j], rtol=1e-12, atol=0)
        relative = error(w, solve(w, kept, s, 0.0), kept, s)
        assert relative == pytest.approx(float(lost / (x @ w.T).square().sum()), rel=1e-10)


def test_updates_of_one_column_after_the_other_are_least_squares(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    kept, new, inverse = torch.tensor([0, 2, 3, 5, 7]), w.clone(), torch.linalg.inv(x.T @ x)
    for j in (1, 4, 6):
        new = new - new[:, j : j + 1] / inverse[j, j] @ inverse[j : j + 1]
        inverse = inverse - inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j]
    found = RECONSTRUCTIONS["obs"].refit(w, kept, moments(x), None, 0.0)
    torch.testing.assert_close(found.weight, new[:, kept], rtol=1e-10, atol=1e-12)


def test_the_error_never_grows_and_shrinks_with_what_is_kept(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    s = x.T @ x
    errors = []
    for width in range(1, 9):
        kept = torch.arange(width)
        after = error(w, solve(w, kept, s, 0.0), kept, s)
        assert after <= error(w, w[:, kept], kept, s) + 1e-12
        errors.append(after)
    assert errors == sorted(errors, reverse=True) and errors[-1] == pytest.approx(0, abs=1e-12)


def test_large_damping_leaves_the_weights_as_they_were(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    kept = torch.tensor([1, 4, 6])
    same(solve(w, kept, x.T @ x, 1e14), w[:, kept])


def test_the_damping_is_the_best_on_held_out_tokens(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    kept = torch.tensor([0, 2, 3, 5, 7])
    seen, held = moments(x[:9]), moments(x[9:])  # few tokens: little damping fits what is seen too closely
    found = LeastSquares().refit(w, kept, seen, held, None)
    tried = {d: error(w, solve(w, kept, seen.gram, d), kept, held.gram) for d in DAMPINGS}
    assert found.damping == min(tried, key=lambda d: tried[d]) > DAMPINGS[0]
    assert LeastSquares().refit(w, kept, seen, held, 0.5).damping == 0.5


def test_random_sums_of_outputs_stand_for_all_of_them() -> None:
    """Their errors are those of all outputs, on average, and the same for both kinds of tokens."""
    torch.manual_seed(0)
    x, w = torch.randn(200, 8).double(), torch.randn(4096, 8).double()
    system = NormalEquations.of(w, torch.tensor([0, 2, 3, 5, 7]), moments(x))
    few = system.sketched(1024)
    assert few.cross.shape == (1024, 5) and few.weight.shape == (1024, 8)
    assert few.error(few.correction(0.1)) == pytest.approx(system.error(system.correction(0.1)), rel=0.05)
    same(few.correction(0.1) @ few.gram + 0.1 * few.mean_diagonal * few.correction(0.1), few.cross)
    assert system.sketched(4096) is system


def test_the_energy_of_the_outputs_is_that_before_the_cut(problem: tuple[Tensor, Tensor]) -> None:
    w, x = problem
    system = NormalEquations.of(w, torch.tensor([0, 2, 5]), moments(x))
    assert system.output_energy == pytest.approx(float((x @ w.T).square().sum()))
    assert (system + system).output_energy == pytest.approx(2 * system.output_energy)


class Network(nn.Module):
    """Residual convolutions, so that the stream spans all segments, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, stride=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1))
        self.b = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, (3, 1), padding=(1, 0), dilation=1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.a(x)
        x = torch.relu(x + self.b(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def original_network() -> Network:
    torch.manual_seed(0)
    return Network().double()


@pytest.fixture(scope="module")
def batches() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(((torch.randn(3, 3, 6, 6, generator=generator),), {}) for _ in range(9))


@pytest.fixture(scope="module")
def cut(batches: tuple[Any, ...]) -> Program:
    """The network, all of whose groups lost half, with calibration data."""
    program = gp.trace(original_network(), (torch.randn(2, 3, 6, 6).double(),))
    double = tuple(((args[0].double(),), kwargs) for args, kwargs in batches)
    steps = gp.Analyze(), Calibrate(batches=double, moments="full"), gp.Score("magnitude"), gp.Allocate(ratio=0.5)
    return gp.Pipeline((*steps, gp.Select(), gp.Rewrite()))(program)


def test_segment_by_segment_is_the_graph(cut: Program) -> None:
    original = cut.fact(Rewritten).original
    wanted = {consumer.node for consumer in original.fact(Dependencies).consumers}
    for program in (original, cut):
        segments = split(program, wanted)
        assert len(segments) >= 4
        for leaves in cut.fact(Calibration).batches[:2]:
            known, value = Constants(program).of(leaves), None
            for segment in segments:
                last = [node.name for node in segment.nodes][-1]
                value, seen = run(segment, program, program.weights, known, value, {last})
            same(seen[last], program.module()(*leaves))


def test_a_convolution_is_refitted_as_its_unfolded_matrix(cut: Program) -> None:
    refitted = Refit(statistics="dense", damping=0.01)(cut)
    original, calibration = cut.fact(Rewritten).original, cut.fact(Calibration)
    kept = cut.fact(Rewritten).keep["a.2.weight"]
    columns = (kept[1][:, None] * 9 + torch.arange(9)).flatten()
    network = original_network()
    with torch.no_grad():
        inputs = [torch.relu(network.a[0](torch.relu(network.stem(x)))) for (x,) in calibration.batches]
    x = torch.cat([nn.functional.unfold(value, 3, padding=1).mT.flatten(0, 1) for value in inputs])
    w = original.weights["a.2.weight"][kept[0]].flatten(1)
    direct = solve(w, columns, x.T @ x, 0.01).reshape(len(kept[0]), -1, 3, 3)
    torch.testing.assert_close(refitted.weights["a.2.weight"], direct, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("statistics", ["sequential", "dense"])
def test_every_consumer_of_a_cut_axis_is_refitted_for_the_better(cut: Program, statistics: str) -> None:
    refits = Refit(statistics=statistics)(cut).fact(Refits)
    assert set(refits.by_weight) == {"a.0.weight", "a.2.weight", "b.0.weight", "b.2.weight", "head.weight"}
    assert all(found.error_after <= found.error_before + 1e-12 for found in refits.by_weight.values())
    assert not refits.skipped


def test_sequential_statistics_differ_from_dense_ones_only_behind_the_first_cut(cut: Program) -> None:
    sequential, dense = (Refit(statistics=s, damping=0.01)(cut).weights for s in ("sequential", "dense"))
    first, *_, last = (
        c.weight for c in cut.fact(Rewritten).original.fact(Dependencies).consumers if "stem" not in c.weight
    )
    same(sequential[first], dense[first])
    assert sequential["head.weight"].shape == dense["head.weight"].shape
    assert last == "head.weight"


def test_a_refit_brings_the_outputs_nearer(cut: Program) -> None:
    original = cut.fact(Rewritten).original.module()
    refitted = Refit()(cut)
    x = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        before, after = ((program.module()(x) - original(x)).square().mean() for program in (cut, refitted))
    assert after < 0.5 * before


def test_a_weight_that_several_layers_use_is_left_as_it_is(batches: tuple[Any, ...]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.shared, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.shared(torch.relu(self.shared(torch.relu(self.a(x))))))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    program = gp.trace(Twice(), (torch.randn(4, 6),))
    calls: tuple[Any, ...] = tuple(((torch.randn(8, 6),), {}) for _ in range(4))
    steps = gp.Analyze(), Calibrate(batches=calls), gp.Score("fasp"), gp.Allocate(ratio=0.5), gp.Select(), gp.Rewrite()
    refits = gp.Pipeline((*steps, Refit()))(program).fact(Refits)
    assert set(refits.by_weight) == {"c.weight"}
    assert refits.skipped == {"shared.weight": "several layers share it"}
