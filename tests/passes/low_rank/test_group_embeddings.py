"""Embedding tables become groups of rows of low ranks: which ones, at what cost, proven, fitted to and exported."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphprune.axes.groups import Dependencies
from graphprune.errors import PlanError
from graphprune.evaluation.masked_loss import Objective
from graphprune.execution.output_comparison import Verification
from graphprune.exporters.targets.onnx import export_program
from graphprune.frontends.modules import trace
from graphprune.ir.program import Factored, Program
from graphprune.ir.weights import Layered
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.low_rank.group_embeddings import GroupEmbeddings
from graphprune.pipeline import Pipeline, parse
from graphprune.planning.facts import Eligible, Refits
from graphprune.planning.plan import Plan
from graphprune.solvers.embedding_tables import count_rows, decreasing, embedding_tables, is_descending
from graphprune.solvers.row_groups import EmbeddingGroups, GroupedFactors, GroupedRows, Spectra
from graphprune.workflows.goals.goal_trials import ShareTrials

ROWS, COLUMNS = 160, 16


class Decoder(nn.Module):
    """A causal model of one layer, with a tied head or one of its own, and a table of positions."""

    def __init__(self, tied: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(ROWS, COLUMNS), nn.Embedding(96, COLUMNS)
        self.up, self.down = nn.Linear(COLUMNS, 24), nn.Linear(24, COLUMNS)
        self.head = nn.Linear(COLUMNS, ROWS, bias=bias)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids) + self.place(torch.arange(input_ids.shape[1], device=input_ids.device))
        return self.head(x + self.down(torch.relu(self.up(x))))  # type: ignore[no-any-return]


def ids(seed: int, most: int = ROWS) -> Tensor:
    """Rare rows have high numbers."""
    uniform = torch.rand(4, 24, generator=torch.Generator().manual_seed(seed))
    return (uniform.square() * uniform * most).long()


def decoder(**options: Any) -> Program:
    torch.manual_seed(0)
    return trace(Decoder(**options), (), {"input_ids": ids(0)})


def run(program: Program, text: str) -> Program:
    calls = tuple(((), {"input_ids": ids(n)}) for n in range(1, 9))
    steps = (replace(s, batches=calls) if isinstance(s, Calibrate) else s for s in parse(text))
    return Pipeline(tuple(steps))(program)


SEEN = "analyze | calibrate | gradients{of=layers}"


@pytest.fixture(scope="module")
def seen() -> Program:
    """A decoder with a tied head, with gradients."""
    return run(decoder(), SEEN)


def grouped(program: Program, text: str) -> Program:
    return Pipeline(parse(text), given=tuple(program.facts))(program)


@pytest.mark.parametrize("options", [{}, {"tied": False, "bias": True}])
def test_tables_and_heads_become_groups_of_rows(options: dict[str, Any]) -> None:
    program = run(decoder(**options), SEEN)
    cut = grouped(program, "group-embeddings{ratio=0.3}")
    small = grouped(cut, "factorize")
    names = {"table.weight"} | (set() if not options else {"head.weight"})
    fact, groups = small.fact(Factored), cut.fact(EmbeddingGroups)
    assert fact.tables.keys() == names
    assert small.count() == program.count() - groups.saved
    assert groups.saved == pytest.approx(0.3 * ROWS * COLUMNS * len(names), rel=0.05)
    assert small.fact(Verification).max_error <= 1e-5
    assert {f"{name}_rows" for name in names} <= small.parameters
    assert not names & small.parameters
    assert "table.weight_order" not in small.parameters
    assert "place.weight" in small.parameters, "positions are no indices that an input selects"
    changed = replace(program, weights=Layered((groups.lowered, program.weights)))
    outputs = (side.module()(input_ids=ids(77)) for side in (small, changed))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_frequent_rows_retain_more(seen: Program) -> None:
    (sizes,) = grouped(seen, "group-embeddings{ratio=0.3,groups=2}").fact(EmbeddingGroups).sizes.values()
    assert [rows for rows, _ in sizes] == [80, 80]
    assert sizes[0][1] > sizes[1][1]
    assert grouped(seen, "group-embeddings{ratio=0.3,groups=2}").fact(Plan).tables == {"table.weight": sizes}


def test_a_plan_with_tables_is_saved_and_needs_data(seen: Program, tmp_path: Path) -> None:
    plan = grouped(seen, "group-embeddings{ratio=0.3}").fact(Plan)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert (loaded, loaded.digest) == (plan, plan.digest)
    with pytest.raises(PlanError, match="a plan has no factors, which come from calibration"):
        loaded.require_cuts()


def test_rows_in_any_order_are_sorted_by_their_counts() -> None:
    model = Decoder()
    program = trace(model, (), {"input_ids": ROWS - 1 - ids(0)})
    calls = tuple(((), {"input_ids": ROWS - 1 - ids(n)}) for n in range(1, 9))
    steps = (replace(s, batches=calls) if isinstance(s, Calibrate) else s for s in parse(SEEN))
    program = Pipeline(tuple(steps))(program)
    groups = grouped(program, "group-embeddings{ratio=0.3}").fact(EmbeddingGroups).by_weight["table.weight"]
    (table,) = embedding_tables(program, program.fact(Dependencies))[0]
    counts = count_rows(program, table)
    assert counts.sum() == 8 * 4 * 24
    assert groups.order.tolist() == counts.argsort(descending=True, stable=True).tolist()
    by_ids = grouped(program, "group-embeddings{ratio=0.3,order=ids}").fact(EmbeddingGroups).by_weight["table.weight"]
    assert by_ids.order.tolist() == list(range(ROWS))


def test_the_refit_starts_from_the_cut_table(seen: Program) -> None:
    program = run(decoder(), "analyze | calibrate{moments=full} | gradients{of=layers}")
    small = grouped(
        program,
        "score{by=k-obs} | group-embeddings{sparsity=0.3,part=0.5} | allocate{by=marginal,sparsity=0.3} | select | "
        "rewrite | refit{statistics=mixed} | verify | analyze | factorize",
    )
    assert 1 - small.count() / program.count() == pytest.approx(0.3, abs=0.01)
    assert small.fact(Factored).tables.keys() == {"table.weight"}
    assert "table.weight" in small.fact(Refits).reduced
    fit = small.fact(Refits).by_weight["down.weight"]
    assert fit.error_after < fit.error_before


def test_trials_of_shares_have_their_spectra_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = "analyze | calibrate | gradients{of=layers} | score{by=k-obs} | group-embeddings{sparsity=SHARE} | " \
        "allocate{by=marginal,sparsity=SHARE} | select"  # fmt: skip

    calls = tuple(((), {"input_ids": ids(n)}) for n in range(1, 9))

    def build(share: float) -> Pipeline:
        steps = parse(passes.replace("SHARE", str(share)))
        return Pipeline(tuple(replace(s, batches=calls) if isinstance(s, Calibrate) else s for s in steps))

    nothing: Any = SimpleNamespace()
    alone = build(0.25)(decoder())
    trials = ShareTrials.start(decoder(), build, nothing, nothing, nothing)
    monkeypatch.setattr(Objective, "loss_of", lambda *_: pytest.fail("the loss of a table is measured again"))
    monkeypatch.setattr(Spectra, "of", lambda *_: pytest.fail("spectra are computed again"))
    planned = trials.planned(0.25)
    assert planned is not None
    assert planned.fact(Plan).groups == alone.fact(Plan).groups
    assert planned.fact(EmbeddingGroups).sizes == alone.fact(EmbeddingGroups).sizes
    assert (
        planned.fact(EmbeddingGroups).score and planned.fact(EmbeddingGroups).score == alone.fact(EmbeddingGroups).score
    )
    losses = trials.curve.losses
    assert len(losses) > 10 and all(a < b for a, b in pairwise(losses))
    assert losses[-1] > 3 * losses[len(losses) // 3]  # the growth of the loss, not the share


@pytest.mark.slow
def test_groups_of_rows_in_onnx(seen: Program, tmp_path: Path) -> None:
    report = export_program(grouped(seen, "group-embeddings{ratio=0.3} | factorize"), tmp_path / "out")
    assert report.facts["parity"]["CPUExecutionProvider"]["worst"] < 1e-4


def test_tables_are_left_to_other_destinations() -> None:
    program = Pipeline(parse("analyze{destination=free}"))(decoder())
    eligible = program.fact(Eligible)
    other = replace(eligible, destination=replace(eligible.destination, name="stock"))
    with pytest.raises(PlanError, match="destination stock cannot hold an embedding table in groups of rows"):
        GroupEmbeddings(ratio=0.3).preflight(program.with_facts(other))


def test_protected_and_oddly_used_tables_are_named(seen: Program) -> None:
    for key in ("table.*", "head", "head.weight:1"):
        tables, left = embedding_tables(seen, seen.fact(Dependencies), (key,))
        assert (tables, left) == ([], {"table.weight": "it is protected"})
    assert embedding_tables(seen, seen.fact(Dependencies), ("up", "neurons"))[0]

    class Norm(Decoder):
        """The table is read as a whole, too."""

        def forward(self, input_ids: Tensor) -> Tensor:
            scores: Tensor = super().forward(input_ids) * self.table.weight.norm()
            return scores

    program = Pipeline(parse("analyze"))(trace(Norm(), (), {"input_ids": ids(0)}))
    tables, left = embedding_tables(program, program.fact(Dependencies))
    assert not tables
    assert "reads it, which is neither a lookup nor a linear layer" in left["table.weight"]


def test_spectra_predict_the_weighted_error() -> None:
    weight, order = torch.randn(60, 12, dtype=torch.float64), torch.randperm(60)
    frequency, root = torch.rand(60, dtype=torch.float64), torch.randn(12, 12, dtype=torch.float64)
    metric = root @ root.T + torch.eye(12, dtype=torch.float64)
    spectra = Spectra.of(weight, order, (40, 20), frequency, metric)
    change = spectra.lowered(weight, (5, 12)) - weight
    assert not change[order[40:]].any()
    cost = 0.5 * (frequency * ((change @ metric) * change).sum(1)).sum()
    assert float(cost) == pytest.approx(spectra.cost((5, 12)), rel=1e-2)  # up to the damping
    plain = torch.linalg.svd(weight[order[:40]], full_matrices=False)
    other = change.clone()
    other[order[:40]] = (plain.U[:, :5] * plain.S[:5]) @ plain.Vh[:5] - weight[order[:40]]
    assert cost < 0.5 * (frequency * ((other @ metric) * other).sum(1)).sum()


def test_factors_of_groups_are_exact() -> None:
    order = torch.randperm(50)
    groups = GroupedRows(order, (30, 12, 8), (4, 8, 3))
    weight = torch.zeros(50, 8, dtype=torch.float64)
    for rows, rank in zip(groups.parts, groups.ranks, strict=True):
        weight[rows] = torch.randn(len(rows), rank, dtype=torch.float64) @ torch.randn(rank, 8, dtype=torch.float64)
    factors = GroupedFactors.of(weight, groups)
    torch.testing.assert_close(factors.product, weight)
    assert [tuple(c.shape) for c in factors.coefficients] == [(26, 4), (5, 3)]
    assert factors.starts == (0, 16)
    again = GroupedFactors.from_parts(factors.named("w"), "w", {"w": ((30, 4), (12, 8), (8, 3))})
    torch.testing.assert_close(again.product, weight)


def test_decreasing_fits_pool_what_violates_the_order() -> None:
    assert decreasing(torch.tensor([5.0, 1.0, 3.0, 2.0])).tolist() == [5, 2, 2, 2]
    assert is_descending(torch.tensor([4.0, 0.0, 1.0, 2.0]), [2, 2])
    assert not is_descending(torch.tensor([1.0, 0.0, 1.0, 2.0]), [2, 2])
