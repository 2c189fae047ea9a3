"""Weights become factors of a low rank: which ones, within which budget, proven, saved and loaded again."""

import gzip
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.errors import CalibrationError, ExportError, PipelineError, PlanError, WriteBackError
from graphprune.execution.output_comparison import Verification
from graphprune.exporters.model_folders import folder_writer
from graphprune.frontends.modules import trace
from graphprune.ir.program import Factored, Program, Rewritten
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Gradients
from graphprune.passes.low_rank.allocate_ranks import AllocateRanks, ranked_errors, ranked_growth, shape_of
from graphprune.passes.low_rank.factorize import Factorize
from graphprune.pipeline import Pass, Pipeline
from graphprune.planning.facts import Refits
from graphprune.planning.plan import Plan
from graphprune.solvers.factorable import factorable
from graphprune.solvers.pivoted_factors import factor_parameters
from graphprune.statistics.moments import GradientSums
from graphprune.workflows.recipes.catalogue import BEST_FACTORED
from tests.recipes import pipeline_of

Tiny = Callable[..., nn.Module]
Inputs = Callable[[str], dict[str, Any]]


class Mixed(nn.Module):
    """Maps of all kinds: stored either way round, with and without bias, shared, tied, behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.plain, self.bare = nn.Linear(12, 20), nn.Linear(20, 16, bias=False)
        self.turned, self.added = nn.Parameter(0.3 * torch.randn(16, 14)), nn.Parameter(torch.randn(14))
        self.matmul = nn.Parameter(0.3 * torch.randn(14, 10))
        self.twice = nn.Linear(10, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).mean((2, 3))
        x = torch.tanh(self.bare(torch.relu(self.plain(x))))
        x = torch.tanh(torch.addmm(self.added, x, self.turned)) @ self.matmul
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(x)))))  # type: ignore[no-any-return]


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(count))


def mixed(dtype: torch.dtype = torch.float32) -> Program:
    torch.manual_seed(0)
    return trace(Mixed().to(dtype), (images(4).to(dtype),))


def low_rank(program: Program, *passes: Pass, **ranks: Any) -> Program:
    dtype = program.inputs[0][0].dtype
    calls: Any = tuple(((images(n).to(dtype),), {}) for n in range(40, 48))
    start = Pipeline((gp.Analyze(), Calibrate(batches=calls, moments="none")))(program)
    return Pipeline((AllocateRanks(**ranks), *passes, Factorize()), given=tuple(start.facts))(start)


def test_maps_of_their_own_become_factors_and_others_are_named() -> None:
    small = low_rank(mixed(), ratio=0.4)
    fact = small.fact(Factored)
    assert set(fact.ranks) == {"plain.weight", "bare.weight", "turned", "matmul"}
    assert fact.left == {
        "stem.weight": "its operator is no plain matrix product", "twice.weight": "it is shared",
        "head.weight": "no linear map follows, it makes outputs of the model",
    }  # fmt: skip
    assert small.fact(Verification).max_error <= 1e-5
    assert {"plain.weight_rows", "plain.weight_coefficients", "plain.bias", "added"} <= small.parameters
    assert not small.parameters & fact.ranks.keys() and "plain.weight_order" not in small.parameters
    assert all(after < 0.5 for _, after in fact.errors.values())
    (x,) = mixed().inputs[0]
    assert F.mse_loss(small.module()(x), mixed().module()(x)) < 0.5 * mixed().module()(x).var()


@pytest.mark.parametrize("rounds", [None, 1])
def test_factors_of_almost_full_rank_change_almost_nothing(rounds: int | None) -> None:
    program = mixed(torch.float64)
    calls: Any = tuple(((images(n).double(),), {}) for n in range(40, 48))
    start = Pipeline((gp.Analyze(), Calibrate(batches=calls, moments="none"), AllocateRanks(ratio=0.01)))(program)
    small = Factorize(rounds=rounds, damping=0.0)(start)
    assert small.fact(Verification).max_error <= 1e-12
    assert small.count() < program.count()
    (x,) = program.inputs[0]
    assert F.mse_loss(small.module()(x), program.module()(x)) < 0.05 * program.module()(x).var()


@pytest.mark.parametrize(("sparsity", "align"), [(0.1, 1), (0.3, 1), (0.3, 2)])
def test_budgets_are_met(sparsity: float, align: int) -> None:
    program = mixed()
    small = low_rank(program, sparsity=sparsity, align=align)
    assert small.count() == pytest.approx((1 - sparsity) * program.count(), rel=0.02 * align)
    assert all(rank % align == 0 for rank in small.fact(Factored).ranks.values())
    with pytest.raises(PlanError, match=r"at rank 1 the linear layers save no more than 806 \(55\.7%\)"):
        low_rank(program, sparsity=0.9)


def test_macs_are_counted_where_weights_are_multiplied_most() -> None:
    class Two(nn.Module):
        """The first map sees every token, the second their mean."""

        def __init__(self) -> None:
            super().__init__()
            self.all, self.mean, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.mean(torch.tanh(self.all(x)).mean(1))))  # type: ignore[no-any-return]

    program = gp.Analyze()(trace(Two(), (torch.randn(2, 10, 16),)))
    ranks = AllocateRanks(sparsity=0.3, budget="macs")(program).fact(Plan).ranks
    macs = {name: times * r * (32 - r) for (name, r), times in zip(ranks.items(), (20, 2), strict=True)}
    whole = 20 * 256 + 2 * 256 + 2 * 32
    assert list(ranks) == ["all.weight", "mean.weight"]
    assert sum(macs.values()) + 2 * 32 == pytest.approx(0.7 * whole, rel=0.02)


def test_ranks_by_error_are_the_best_of_all_that_save_as_much() -> None:
    calls: Any = tuple(((images(n),), {}) for n in range(40, 48))
    start = Pipeline((gp.Analyze(), Calibrate(batches=calls, moments="none")))(mixed())
    ranks = AllocateRanks(sparsity=0.2, by="error", protect=("matmul", "bare*"))(start).fact(Plan).ranks
    found, _ = factorable(start, gp.analyze(start), ("matmul", "bare*"))
    shapes = {c.weight: shape_of(start, c) for c in found}
    errors = ranked_errors(start, found)
    full = {name: min(shape) for name, shape in shapes.items()}

    def held(chosen: dict[str, int]) -> int:
        return sum(factor_parameters(*shapes[name], rank) for name, rank in chosen.items())

    def lost(chosen: dict[str, int]) -> float:
        return sum(float(errors[name][rank]) for name, rank in chosen.items())

    every = [dict(zip(full, pair, strict=True)) for pair in product(*(range(1, most + 1) for most in full.values()))]
    chosen = full | dict(ranks)
    assert start.count() - (held(full) - held(chosen)) <= 0.8 * start.count() + 1
    assert lost(chosen) == min(lost(other) for other in every if held(other) <= held(chosen))
    for name, tail in errors.items():
        assert tail[0] == pytest.approx(1.0) and tail[-1] == 0.0 and len(tail) == full[name] + 1
    with pytest.raises(PipelineError, match="needs Calibration, .*before it: calibrate$"):
        AllocateRanks(sparsity=0.2, by="error")(gp.Analyze()(mixed()))
    with pytest.raises(PlanError, match="ranks are chosen by density or error or growth, not 'chance'"):
        AllocateRanks(sparsity=0.2, by="chance")(start)


@pytest.mark.parametrize("cut", ["", "score{by=magnitude},allocate{ratio=0.1},select,rewrite,analyze"])
def test_growth_is_that_of_the_loss(cut: str) -> None:
    calls: Any = tuple(((images(n).double(),), {}) for n in range(40, 48))
    steps = gp.Analyze(), Calibrate(batches=calls), Gradients(lambda output, i: output.square().sum(), "layers", most=3)
    start = Pipeline(steps)(mixed(torch.float64))
    assert start.fact(GradientSums).batches == 3
    program = Pipeline.parse(cut, tuple(start.facts))(start) if cut else start
    ranks = AllocateRanks(sparsity=0.4, by="growth", protect=("matmul",))(program).fact(Plan).ranks
    found, _ = factorable(program, gp.analyze(program))
    errors, gathered = ranked_growth(program, found), program.fact(GradientSums)
    lost = {}
    for consumer in found:
        g, s = gathered.output_grams[consumer.node], gathered.input_moments[consumer.node].gram
        w = consumer.matrix(program.weights[consumer.weight])
        tokens = gathered.input_moments[consumer.node].tokens
        shares = min(0.1, len(s) / tokens), min(1.0, 30 * len(g) / tokens)
        if cut:
            kept = program.fact(Rewritten).keep.get(consumer.weight, {})
            g, s = (m[i][:, i] for m, dim in ((g, 1 - consumer.dim), (s, consumer.dim))
                    for i in [kept.get(dim, torch.arange(len(m)))])  # fmt: skip
        s, g = (m + share * m.diagonal().mean() * torch.eye(len(m)) for m, share in ((s, shares[0]), (g, shares[1])))
        half, above = torch.linalg.cholesky(s), torch.linalg.cholesky(g).T
        u, values, v = torch.linalg.svd(above @ w @ half, full_matrices=False)
        low = torch.linalg.inv(above) @ (u[:, :2] * values[:2]) @ v[:2] @ torch.linalg.inv(half)
        change = low - w
        lost[consumer.weight] = float((g @ change @ s * change).sum()), float((g @ w @ s * w).sum())
    whole = sum(all_of_it for _, all_of_it in lost.values())
    for name, (part, all_of_it) in lost.items():
        assert float(errors[name][2]) == pytest.approx(part / whole, rel=1e-4, abs=1e-9)
        assert float(errors[name][0]) == pytest.approx(all_of_it / whole, rel=1e-4)
    assert ranks and "matmul" not in ranks
    with pytest.raises(PipelineError, match="needs GradientSums, .*gradients$"):
        AllocateRanks(sparsity=0.4, by="growth")(program.without(GradientSums))


def test_inputs_are_those_that_factored_maps_before_make() -> None:
    def worst(mix: float) -> float:
        calls: Any = tuple(((images(n),), {}) for n in range(40, 48))
        start = Pipeline((gp.Analyze(), Calibrate(batches=calls, moments="none"), AllocateRanks(ratio=0.5)))(mixed())
        small = Factorize(mix=mix)(start)
        x = torch.cat([args[0] for args, _ in calls])
        return float(F.mse_loss(small.module()(x), mixed().module()(x)).detach())

    assert worst(1.0) < worst(0.0)  # what the first maps did wrong is made up for by the later ones


@pytest.mark.parametrize("kind", ["bert", "vit", "gpt2"])
def test_encoders_and_decoders_become_factors(tiny: Tiny, inputs: Inputs, kind: str) -> None:
    program = trace(tiny(kind, **({"use_cache": False} if kind == "gpt2" else {})), (), inputs(kind))
    calls = tuple(((), inputs(kind)) for _ in range(2))
    passes = gp.Analyze(), AllocateRanks(sparsity=0.2), Calibrate(batches=calls, moments="none"), Factorize()
    small = Pipeline(passes)(program)
    assert small.count() == pytest.approx(0.8 * program.count(), rel=0.01)
    assert small.fact(Verification).max_error <= 1e-4


def test_widths_first_or_ranks_first(tiny: Tiny, inputs: Inputs) -> None:
    program = trace(tiny("llama", use_cache=False), (), inputs("llama"))
    calls = tuple(((), inputs("llama")) for _ in range(2))
    data = Calibrate(batches=calls, moments="full")
    start = Pipeline((gp.Analyze(), data))(program)
    width = "score{by=fasp},allocate{sparsity=0.1},select,rewrite,refit,verify"
    given = tuple(start.facts)
    both = Pipeline.parse(f"{width},analyze,allocate-ranks{{sparsity=0.19}},factorize", given)(start)
    assert both.count() == pytest.approx(0.81 * program.count(), rel=0.01)  # what was cut counts
    plan = both.fact(Plan)
    assert plan.groups and plan.ranks and both.fact(Verification).max_error <= 1e-4
    ranked = Pipeline.parse("allocate-ranks{sparsity=0.1},factorize,analyze", given)(start)
    after = Pipeline((data,), given=tuple(ranked.facts))(ranked)
    other = Pipeline.parse("score{by=fasp},allocate{ratio=0.25},select,rewrite,verify", tuple(after.facts))(after)
    assert other.count() < ranked.count() and other.fact(Verification).max_error <= 1e-4


@pytest.mark.parametrize("statistics", ["sequential", "mixed"])
def test_a_refit_finds_widths_and_ranks_in_one_walk(
    tiny: Tiny, inputs: Inputs, statistics: str, caplog: pytest.LogCaptureFixture
) -> None:
    program = trace(tiny("llama", use_cache=False), (), inputs("llama"))
    start = Pipeline((gp.Analyze(), Calibrate(batches=tuple(((), inputs("llama")) for _ in range(2)))))(program)
    cut = "score{by=fasp},allocate{sparsity=0.1},select,rewrite,analyze,allocate-ranks{sparsity=0.19}"
    whole = Pipeline.parse(f"{cut},refit{{statistics={statistics}}},verify", tuple(start.facts))(start)
    ranks, fits = whole.fact(Plan).ranks, whole.fact(Refits)
    assert fits.reduced == ranks.keys() == fits.by_weight.keys()
    for name, rank in ranks.items():
        values = torch.linalg.svdvals(whole.weights[name].double())
        assert values[rank - 1] > 1e3 * values[rank]
    small = Pipeline.parse("factorize", tuple(whole.facts))(whole)
    assert small.count() == pytest.approx(0.81 * program.count(), rel=0.01)
    wanted, found = (part.module()(**inputs("llama"))["logits"] for part in (whole, small))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    enough = Pipeline.parse(cut.replace("0.19", "0.05"), tuple(start.facts))(start)
    assert enough.fact(Plan).ranks == {}  # the cut removed more than the target
    assert "no less than the target" in caplog.text


def test_a_recipe_cuts_and_lowers_ranks(tiny: Tiny, inputs: Inputs) -> None:
    program = trace(tiny("llama", use_cache=False), (), inputs("llama"))
    calls = tuple(((), inputs("llama")) for _ in range(4))
    small = pipeline_of(pipeline=BEST_FACTORED, sparsity=0.2, batches=calls)(program)
    assert small.fact(Factored).ranks and small.fact(Rewritten).groups
    assert small.count() == pytest.approx(0.8 * program.count(), rel=0.02)


def test_ranks_are_left_out_where_no_destination_holds_factors() -> None:
    free, stock = (pipeline_of("best", sparsity=0.2, destination=name) for name in ("free", "stock"))
    low_rank = {"group-embeddings", "allocate-ranks", "factorize"}
    assert low_rank == {p.name for p in free.passes} - {p.name for p in stock.passes}
    parts = [next(p for p in found.passes if isinstance(p, gp.Allocate)).part for found in (free, stock)]
    assert parts == [0.6, 1]


def test_refused_before_anything_is_calibrated(folder: Path, text: Path, tmp_path: Path) -> None:
    options: Any = {"recipe": "mpifa", "sparsity": 0.2, "calibration": text, "output": tmp_path / "out"}
    with pytest.raises(PlanError, match="destination stock cannot hold factors of a low rank.*destination free"):
        gp.prune(folder, destination="stock", **options)
    with pytest.raises(PlanError, match="low rank saves parameters or macs, not 'kv_cache'"):
        gp.prune(folder, destination="free", budget="kv_cache", **options)
    with pytest.raises(PlanError, match="no linear layer of the model can have factors"):
        AllocateRanks(ratio=0.5)(gp.Analyze()(trace(nn.Linear(4, 4), (torch.randn(2, 4),))))
    with pytest.raises(PlanError, match="give either sparsity"):
        Pipeline((gp.Analyze(), AllocateRanks()))
    with pytest.raises(CalibrationError, match="mix is a share between 0 and 1, got 2"):
        Factorize(mix=2).check()


@pytest.mark.slow
def test_saved_and_loaded_again(folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: Any = {"recipe": "mpifa", "sparsity": 0.2, "samples": 8, "length": 32, "align": 1, "destination": "free"}
    made = gp.prune(folder, output=out, calibration=text, **options)
    assert made.program is not None
    assert made.report.sparsity_reached == pytest.approx(0.2, abs=0.01)
    assert max(made.report.errors.values()) <= 1e-4 and "products and their factors" in made.report.errors
    assert any("weights became factors of ranks" in note for note in made.report.notes)
    again, counts = gp.load(out), made.report.counts
    assert sum(after for _, after in counts.values()) == again.count(), "factors count under the name of their product"
    assert counts.keys() == gp.load(folder).shapes().keys() & gp.load(folder).parameters
    assert again.count() == made.program.count() == made.report.parameters_after
    ids = {**again.inputs[1]}
    torch.testing.assert_close(again.module()(**ids), made.program.module()(**ids), rtol=1e-5, atol=1e-5)
    gp.verify_folder(out)
    with pytest.raises(PlanError, match="a plan has no factors, which come from calibration"):
        gp.apply_plan(folder, out / "plan.json", output=tmp_path / "again")
    planned = gp.prune(folder, output=tmp_path / "plan", calibration=text, plan_only=True, **options)
    assert planned.plan.digest == made.plan.digest
    assert planned.report.parameters_after == made.report.parameters_after
    with pytest.raises(ExportError):
        folder_writer.save(made.program, tmp_path / "stock", destination="stock")


def test_modules_cannot_follow(tiny: Tiny, inputs: Inputs) -> None:
    model = tiny("bert")
    program = trace(model, (), inputs("bert"))
    start = Pipeline(
        (gp.Analyze(), AllocateRanks(ratio=0.3), Calibrate(batches=(((), inputs("bert")),), moments="none"))
    )
    with pytest.raises(WriteBackError, match="a module has no layers for factors"):
        Factorize()(start(program)).write_back(model)


def test_protected_weights_stay() -> None:
    program = gp.Analyze()(mixed())
    found, left = factorable(program, gp.analyze(program), ("p*", "turned"))
    assert [c.weight for c in found] == ["bare.weight", "matmul"] and left["plain.weight"] == "it is protected"


@pytest.mark.slow
def test_a_trained_model_keeps_telling_stories(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    whole = gzip.decompress(shared_data("text/tinystories.2MiB.txt.gz").read_bytes()).decode()
    halves = {"first": whole[: len(whole) // 2], "second": whole[len(whole) // 2 :]}
    for name, part in halves.items():
        (tmp_path / name).write_text(part, encoding="utf-8")
    model, out = shared_data("stories260k"), tmp_path / "out"
    options: Any = {"samples": 64, "length": 256, "align": 1, "destination": "free", "sparsity": 0.2}
    gp.prune(model, output=out, recipe="mpifa", calibration=tmp_path / "first", **options)
    gp.verify_folder(out)
    found = [gp.evaluate(m, tmp_path / "second", length=256, windows=32).perplexity for m in (model, out)]
    assert found[1] < 3 * found[0]
