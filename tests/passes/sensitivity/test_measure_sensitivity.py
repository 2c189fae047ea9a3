"""Sensitivities are the losses of models that are really cut, and refitted; and the same wherever a run starts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.errors import CalibrationError, LoadError, PlanError
from graphprune.evaluation.masked_loss import Objective
from graphprune.ir.program import Program
from graphprune.passes.reconstructions.refit import Refit
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.passes.sensitivity import measure_sensitivity
from graphprune.passes.sensitivity.measure_sensitivity import MeasureSensitivity
from graphprune.pipeline import parse
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import Plan, make
from graphprune.planning.ranking import top
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import Statistics
from graphprune.support.workspace import Workspace, use_workspace
from tests.passes.calibration.test_experts import Mixture


class Net(nn.Module):
    """Three feed-forward layers with residual connections; the last one has two maps behind its neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(4, n), "down": nn.Linear(n, 4)}) for n in (12, 8, 10)
        )
        self.side = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = torch.relu(layer["up"](x))  # type: ignore[index]
            x = x + layer["down"](hidden)  # type: ignore[index]
        return x + self.side(hidden)  # type: ignore[no-any-return]


def ready(model: nn.Module, batches: list[tuple[tuple[Any, ...], dict[str, Any]]], score: str = "magnitude") -> Program:
    """A program that knows its groups, calibration inputs and scores."""
    program = gp.trace(model, *batches[0])
    return gp.Pipeline((gp.Analyze(), gp.Calibrate(batches=tuple(batches), moments="none"), gp.Score(score)))(program)


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return ready(Net(), [((torch.randn(64, 4),), {}) for _ in range(4)])


def cut(program: Program, group: str, width: int) -> Program:
    """The program with one group really narrower."""
    rows = {group: top(program.fact(Scores).by_group[group], width)}
    plan = make(program, program.fact(Dependencies), rows)
    return rewrite(program.with_facts(plan), plan)


def test_without_a_refit_it_is_the_loss_of_the_cut_model(program: Program) -> None:
    found = MeasureSensitivity(by="none")(program).fact(gp.Sensitivities)
    judge = Objective.of(program)
    assert found.dense == judge.dense == 0 and found.unit.startswith("squared error")
    assert [(t.group, t.width) for t in found.trials[:4]] == [("layers.0.up.weight:0", w) for w in (11, 9, 6, 3)]
    assert {t.group for t in found.trials} == {g.name for g in program.fact(Eligible).groups}
    for trial in found.trials:
        assert trial.loss == pytest.approx(judge.loss_of(cut(program, trial.group, trial.width)), rel=1e-4)


def test_with_a_refit_it_is_the_loss_of_the_refitted_model(program: Program) -> None:
    """The pass that refits a cut model to the same batches leads to the same loss."""
    found = MeasureSensitivity((0.25, 0.5))(program).fact(gp.Sensitivities)
    calibration, judge = program.fact(Calibration), Objective.of(program)
    seen = replace(calibration, batches=calibration.batches[:-1])
    for trial in (t for t in found.trials if t.refitted):
        small = cut(program, trial.group, trial.width).with_facts(
            replace(seen, batches=[*seen.batches] * 3), Statistics({})
        )
        # Thrice the same batches: so many that some are held out, and none is judged by.
        again = Refit(damping=1e-2)(small)
        assert trial.loss == pytest.approx(judge.loss_of(again), rel=1e-3)
    plain = {(t.group, t.width): t.loss for t in found.trials if not t.refitted}
    better = [t.loss < plain[t.group, t.width] for t in found.trials if t.refitted]
    assert len(better) == len(plain) and sum(better) >= len(better) - 1


def test_a_trial_starts_where_its_group_is_first_read(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of runs from the inputs, and fewer segments are run for them."""
    from_segments = MeasureSensitivity()(program).fact(gp.Sensitivities)
    starts: list[int] = []
    plain = Objective.losses_from

    def noted(self: Objective, start: int, *rest: Any) -> list[float]:
        starts.append(start)
        return plain(self, start, *rest)

    monkeypatch.setattr(Objective, "losses_from", noted)
    MeasureSensitivity()(program)
    assert len(set(starts)) == 3 and starts == sorted(starts)
    monkeypatch.setattr(measure_sensitivity._Measurement, "_move", lambda self, to: None)
    assert MeasureSensitivity()(program).fact(gp.Sensitivities) == from_segments
    assert set(starts[len(starts) // 2 :]) == {0}


def test_of_language_models_every_group_has_a_loss(tiny: Callable[..., nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 60, (2, 8), generator=generator) for _ in range(3)]
    program = ready(tiny("llama", use_cache=False), [((), {"input_ids": i}) for i in ids])
    found = MeasureSensitivity((0.5,))(program).fact(gp.Sensitivities)
    judge = Objective.of(program)
    assert found.unit == "nats a token" and found.dense == pytest.approx(judge.dense)
    unread = {g.name for g in program.fact(Eligible).groups if not program.fact(Dependencies).consumers_of(g)}
    for name, trials in found.groups.items():
        assert [t.refitted for t in trials] == ([False] if name in unread else [False, True])
        rows = {name: top(program.fact(Scores).by_group[name], trials[0].width)}
        assert trials[0].loss == pytest.approx(judge.loss(rows), rel=1e-5)


def test_finished_groups_are_not_measured_again(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, plain, calls = MeasureSensitivity()(program).fact(gp.Sensitivities), Objective.losses_from, [0]

    def counted(self: Objective, *arguments: Any) -> list[float]:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    def measured() -> gp.Sensitivities:
        with use_workspace(Workspace(tmp_path, time_share=1)):
            return MeasureSensitivity()(program).fact(gp.Sensitivities)

    monkeypatch.setattr(Objective, "losses_from", counted)
    with pytest.raises(KeyboardInterrupt):
        measured()
    steps = tmp_path / "01-measure-sensitivity"
    assert sorted(path.stem for path in steps.glob("*.json")) == ["00000", "00001"]
    assert measured() == whole and calls[0] == 3 + 1
    assert measured() == whole and calls[0] == 3 + 1
    damaged = steps / "00002.json"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert measured() == whole and calls[0] == 3 + 2


@pytest.mark.parametrize("ratios", [(), (0.0,), (1.0,), (-1.0,), (float("nan"),), ("x",)])
def test_ratios_are_shares(ratios: tuple[Any, ...]) -> None:
    with pytest.raises(PlanError, match="ratios must lie between 0 and 1"):
        MeasureSensitivity(ratios).check()


def test_refits_with_biases_and_data_for_none_are_refused(program: Program) -> None:
    with pytest.raises(CalibrationError, match="affine adds biases"):
        MeasureSensitivity(by="affine").check()
    calibration = program.fact(Calibration)
    alone = program.with_facts(replace(calibration, batches=calibration.batches[:1]))
    assert MeasureSensitivity(by="none")(alone).fact(gp.Sensitivities).trials
    with pytest.raises(CalibrationError, match="give more samples"):
        MeasureSensitivity()(alone)


def test_the_allocation_follows_what_was_measured(program: Program, tmp_path: Path) -> None:
    """As the fact, and as a table: the same shares; and those of the allocation's own trials at the same widths."""
    measured = MeasureSensitivity((0.2, 0.4, 0.6, 0.8))(program)
    table = tmp_path / "table.json"
    found = measured.fact(gp.Sensitivities)
    found.save(table)
    assert gp.Sensitivities.load(table) == found
    select = gp.Select()
    plans = [
        select(gp.Allocate("sensitivity", 0.3, **options)(start)).fact(Plan).widths
        for start, options in (
            (measured, {}),
            (program, {"table": str(table)}),
            (measured, {"refitted": False}),
            (program, {"table": str(table), "refitted": False}),
            (program, {}),
        )
    ]
    assert plans[0] == plans[1] and plans[2] == plans[3] == plans[4]
    parsed = gp.Pipeline.parse(
        f"allocate{{by=sensitivity,sparsity=0.3,table={table}}},select", given=tuple(program.facts)
    )
    assert parsed(program).fact(Plan).widths == plans[1]


def test_the_allocation_spares_what_was_measured_to_matter(program: Program, tmp_path: Path) -> None:
    found = MeasureSensitivity((0.5,))(program).fact(gp.Sensitivities)
    first = found.trials[0].group
    for factor in (100.0, 0.001):
        trials = tuple(replace(t, loss=t.loss * factor) if t.group == first else t for t in found.trials)
        made_up = program.with_facts(replace(found, trials=trials))
        widths = gp.Select()(gp.Allocate("sensitivity", 0.2)(made_up)).fact(Plan).widths
        assert (widths.get(first, 12) == 12) == (factor > 1)


def test_a_table_of_something_else_is_refused(program: Program, tmp_path: Path) -> None:
    found = MeasureSensitivity((0.5,))(program).fact(gp.Sensitivities)
    with pytest.raises(PlanError, match=r"measured on another model: its fingerprint is cafe"):
        gp.Allocate("sensitivity", 0.2)(program.with_facts(replace(found, program="cafe")))
    first = found.trials[0].group
    less = replace(found, trials=tuple(t for t in found.trials if t.group != first))
    with pytest.raises(PlanError, match=rf"lack 1 of the groups .*{first}; measure them with the same recipe"):
        gp.Allocate("sensitivity", 0.2)(program.with_facts(less))
    for wrong in ({"by": "uniform", "sparsity": 0.2}, {"by": "sensitivity", "ratio": 0.2}):
        with pytest.raises(PlanError, match="a table of sensitivities is for by=sensitivity"):
            gp.Allocate(**wrong, table="table.json").check()  # type: ignore[arg-type]
    path = tmp_path / "table.json"
    for content in ("", "[]", json.dumps({"format": 7}), json.dumps({"format": 1, "trials": [{"group": "a"}]})):
        path.write_text(content)
        with pytest.raises(LoadError, match=r"table\.json is (no table of sensitivities|a table of another format)"):
            gp.Sensitivities.load(path)


def test_the_loss_without_an_expert_is_that_of_the_cut_mixture() -> None:
    """Zeros in its row of the router would leave the expert a candidate."""
    torch.manual_seed(0)
    x = torch.randn(60, 6, dtype=torch.float64)
    program = gp.trace(Mixture(masked=False).double(), (x[:7],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    calls: Any = tuple(((part,), {}) for part in x.chunk(3))
    text = "analyze,calibrate,measure-routing,score{by=routing-frequency}"
    scored = gp.Pipeline(parse(text, {"batches": calls, "exact_only": False}))(program)
    measured = MeasureSensitivity((0.25, 0.5))(scored).fact(gp.Sensitivities)
    judge, experts = Objective.of(scored), {g.name for g in scored.fact(Eligible).groups if g.routed}
    trials = [trial for trial in measured.trials if trial.group in experts]
    assert [(trial.width, trial.refitted, trial.loss > 1e-6) for trial in trials] == [
        (3, False, False),
        (2, False, True),
    ]
    for trial in trials:  # the first one loses an expert without tokens
        loss = judge.loss_of(cut(scored, trial.group, trial.width))
        assert trial.loss == pytest.approx(loss, rel=1e-4, abs=1e-12)
