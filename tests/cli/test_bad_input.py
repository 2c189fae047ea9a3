"""Whatever is wrong with what a user gives: one error that says what to do, and nothing half-written."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import graphprune as gp
from graphprune.errors import (
    CalibrationError,
    ExportError,
    GraphpruneError,
    LoadError,
    PipelineError,
    PlanError,
    RegistryError,
    TraceError,
    WriteBackError,
)
from graphprune.passes.calibration.calibrate import Calibrate


@pytest.fixture
def program() -> gp.Program:
    torch.manual_seed(0)
    return gp.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (torch.randn(3, 6),))


@pytest.fixture
def prune(folder: Path, text: Path, tmp_path: Path) -> Callable[..., Any]:
    """Prune the saved decoder into a new folder; what is left there if that fails is checked."""
    standard = {
        "output": tmp_path / "out",
        "sparsity": 0.1,
        "calibration": text,
        "samples": 16,
        "length": 8,
        "align": 1,
    }

    def call(**changes: Any) -> Any:
        before = sorted(tmp_path.rglob("*"))
        try:
            return gp.prune(changes.pop("model", folder), **{**standard, **changes})
        except BaseException as fault:
            known = ".out.run" if isinstance(fault, KeyboardInterrupt) else ""  # what a user stops can go on
            left = [path for path in sorted(tmp_path.rglob("*")) if known not in path.parts]
            assert left == before, "something is left behind"
            raise

    return call


@pytest.mark.parametrize("sparsity", [0, 1, 1.5, -0.1, math.nan, math.inf, "half"])
def test_a_share_that_is_none(sparsity: Any, program: gp.Program) -> None:
    with pytest.raises(PlanError, match=rf"sparsity must lie between 0 and 1 \(0\.2 is 20 %\), got {sparsity!r}"):
        gp.plan(program, sparsity=sparsity)
    with pytest.raises(PlanError, match=f"ratio must lie between 0 and 1 .* got {sparsity!r}"):
        gp.plan(program, ratio=sparsity)


@pytest.mark.parametrize("wrong", [{"sparsity": 1.5}, {"align": 0}])
def test_numbers_are_refused_before_any_pass_runs(
    wrong: dict[str, float], prune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphprune.passes.analysis.analyze.Analyze.run", None)
    with pytest.raises(PlanError, match="sparsity must lie between 0 and 1|align must be a positive whole number"):
        prune(**wrong)


def test_two_targets_or_none(program: gp.Program) -> None:
    for share in (None, 0.1):
        with pytest.raises(PlanError, match="give either sparsity .* or ratio"):
            gp.plan(program, sparsity=share, ratio=share)


def test_a_target_out_of_reach(prune: Callable[..., Any]) -> None:
    with pytest.raises(PlanError, match=r"to remove [\d,]+ parameters \(90.0%\), but the free groups hold at most"):
        prune(sparsity=0.9)


@pytest.mark.parametrize("align", [0, -8, 1.5])
def test_an_alignment_that_is_none(align: Any, program: gp.Program) -> None:
    with pytest.raises(PlanError, match=f"align must be a positive whole number, got {align}"):
        gp.plan(program, sparsity=0.2, align=align)


def test_a_text_that_is_empty_or_too_short(prune: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text("")
    with pytest.raises(CalibrationError, match="the text is empty; expected at least 128 tokens: name another text"):
        prune(calibration=path)
    path.write_text("w3 w4 w5 " * 20)
    with pytest.raises(CalibrationError, match="has 60 tokens, but 16 x 8 = 128 are needed.*no more than 7 samples"):
        prune(calibration=path)
    with pytest.raises(LoadError, match=r"none\.txt does not exist; expected a \.txt or \.jsonl file"):
        prune(calibration=tmp_path / "none.txt")
    with pytest.raises(CalibrationError, match="recipe fasp needs calibration data; name a text"):
        prune(calibration=None)


def test_a_text_that_nothing_reads_is_named(
    prune: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prune(recipe="magnitude", calibration=tmp_path / "none.txt")
    assert "no pass of this run reads data: the calibration text has no effect" in caplog.text


def test_a_model_that_is_missing_or_corrupt(prune: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot load .*there is no such file or folder; expected one of"):
        prune(model=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="the folder is empty; expected one of"):
        prune(model=tmp_path / "empty")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(LoadError, match="model.safetensors"):
        prune(model=broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(LoadError, match="config"):
        prune(model=broken)


def test_a_plan_of_another_model(program: gp.Program) -> None:
    plan = gp.plan(program, ratio=0.5)
    other = gp.trace(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), (torch.randn(3, 6),))
    with pytest.raises(PlanError, match="made for another model: its fingerprint is .* make a plan for this model"):
        gp.apply(other, plan)
    with pytest.raises(WriteBackError, match=r"Sequential is not the module that was traced: 0.weight should have"):
        gp.apply(program, plan).write_back(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)))


TAMPERED: list[tuple[Callable[[dict[str, Any]], object], type[GraphpruneError], str]] = [
    (lambda p: p["keep"]["2.weight"]["1"].reverse(), PlanError, "contradicts itself: 2.weight, dimension 1"),
    (lambda p: p["keep"].pop("0.bias"), PlanError, "contradicts itself: 0.bias, dimension 0"),
    (lambda p: p["groups"].update({"0.weight:0": [[0, 9]]}), PlanError, "sorted, unique and below 8, got .0, 9."),
    (lambda p: p["groups"].update({"0.weight:0": [[1, 1]]}), PlanError, "sorted, unique and below 8, got .1, 1."),
    (lambda p: p["groups"].update({"0.weight:0": [[0], [1]]}), PlanError, "needs 1 rows of indices, got 2"),
    (lambda p: p["groups"].update({"elsewhere:0": [[0]]}), PlanError, "has no group 'elsewhere:0'; .* inspect"),
    (lambda p: p.update(fingerprint="0" * 16), PlanError, "made for another model"),
    (lambda p: p.update(format=99), LoadError, "is a plan of format 99; this version reads 1: make the plan again"),
    (lambda p: p.pop("groups"), LoadError, "is no plan that graphprune saved .*make one with"),
    (
        lambda p: p["groups"].update({"0.weight:0": 3}),
        LoadError,
        r"groups\['0.weight:0'\] is a whole number 3, expected",
    ),
    (lambda p: p["groups"].update({"0.weight:0": [["0"]]}), LoadError, r"\['0.weight:0'\]\[0\]\[0\] is a text '0'"),
    (
        lambda p: p["groups"].update({"0.weight:0": [[True]]}),
        LoadError,
        "is a truth value True, expected a whole number",
    ),
    (lambda p: p["groups"].update({"0.weight:0": [[0.5]]}), LoadError, "is a number 0.5, expected a whole number"),
    (lambda p: p["groups"].update({"0.weight:0": [[-1, 0]]}), PlanError, "sorted, unique and below 8, got .-1, 0."),
    (lambda p: p["groups"].update({"0.weight:0": []}), LoadError, r"groups\['0.weight:0'\] has no indices"),
    (lambda p: p["groups"].update({"0.weight:0": [[]]}), LoadError, r"groups\['0.weight:0'\] has no indices"),
    (lambda p: p["groups"].update({"0.weight:0": [[0], [0, 1]]}), LoadError, r"or rows of unequal lengths"),
    (lambda p: p["keep"]["0.bias"].update({"7": [0, 1]}), PlanError, "contradicts itself: 0.bias, dimension 7"),
    (
        lambda p: p["keep"]["0.bias"].update({"-1": [0, 1]}),
        LoadError,
        r"keep\['0.bias'\]\['-1'\]: '-1' is no dimension",
    ),
    (lambda p: p["keep"]["0.bias"].update({"0": [2**70]}), LoadError, "has an index that is out of range"),
    (lambda p: p["keep"]["0.bias"].update({"0": [[0], [0, 1]]}), LoadError, "rows of unequal lengths"),
    (lambda p: p["keep"]["0.bias"].update({"0": [[[]], 3]}), LoadError, r"keep\['0.bias'\]\['0'\]"),
    (lambda p: p["keep"].update({"2.bias": {"0": [0]}}), PlanError, "contradicts itself: 2.bias, dimension 0"),
    (lambda p: p.update(made_by="x"), LoadError, "made_by is a text 'x', expected an object"),
    (lambda p: p.update(blocks=[3]), LoadError, r"blocks\[0\] is a whole number 3, expected a text"),
    (lambda p: p.update(ranks={"a": 0}), LoadError, r"ranks\['a'\] is a whole number 0, expected .* at least 1"),
    (lambda p: p.update(fingerprint=None), LoadError, "fingerprint is null, expected a text"),
    (lambda p: p.update(more=1), LoadError, "more is unknown"),
]


@pytest.mark.parametrize(("change", "kind", "said"), TAMPERED)
def test_a_plan_that_was_tampered_with(
    change: Callable[[dict[str, Any]], object], kind: type[Exception], said: str, program: gp.Program, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    gp.plan(program, ratio=0.5).save(path)
    assert gp.apply(program, gp.Plan.load(path)).count() < program.count()
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(kind, match=said):
        gp.apply(program, gp.Plan.load(path))


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("no json")
    for name in ("plan.json", "none.json"):
        with pytest.raises(LoadError, match=f"{name} is no plan that graphprune saved .*; make one with"):
            gp.Plan.load(tmp_path / name)


def test_an_output_that_exists(prune: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ExportError, match="out exists already; choose another output or pass --force to replace it"):
        prune()
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_make_no_numbers(value: float, prune: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = value
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CalibrationError, match="the activations at .* hold NaN or infinity; check the model and the"):
        prune(model=broken)
    with pytest.raises(GraphpruneError, match="not finite|NaN"):
        prune(model=broken, recipe="random", sparsity=0.01)


def test_inputs_that_are_no_numbers(program: gp.Program) -> None:
    calibrate = Calibrate(batches=(((torch.full((3, 6), math.nan),), {}),) * 2)
    with pytest.raises(CalibrationError, match="hold NaN or infinity"):
        gp.Pipeline((gp.Analyze(), calibrate))(program)


def test_a_destination_that_the_model_does_not_have(program: gp.Program) -> None:
    with pytest.raises(
        PlanError, match="destination stock needs a Hugging Face folder, or a module .*with its configuration; use free"
    ):
        gp.plan(program, ratio=0.5, destination="stock")
    with pytest.raises(PlanError, match="destination must be one of stock, per-layer, free, got 'sky'"):
        gp.plan(program, ratio=0.5, destination="sky")


UNKNOWN = [
    ("analyse", RegistryError, "no pass 'analyse'; did you mean analyze"),
    (
        "analyze,score{by=magnitud},allocate{ratio=0.5},select",
        RegistryError,
        "no score 'magnitud'; did you mean magnitude",
    ),
    (
        "analyze,score,allocate{by=fair,sparsity=0.5},select",
        RegistryError,
        "no allocation 'fair'; choose one of .*uniform",
    ),
    (
        "analyze,score{bye=fasp}",
        PipelineError,
        "score has no option 'bye'; its options are by, seed, written key=value",
    ),
    ("analyze,score{fasp}", PipelineError, "score has no option 'fasp'"),
    ("analyze,,score", PipelineError, "there is an empty pass in 'analyze,,score'; write passes as in"),
    ("analyze score", PipelineError, r"'analyze score' is no pass; write it as in score\{by=fasp\}"),
    (
        "analyze,select,score",
        PipelineError,
        "pass 2, select, needs Scores, Shares, which no earlier pass makes; put one",
    ),
    (
        "rewrite",
        PipelineError,
        "pass 1, rewrite, needs Plan, .* put one of these before it: allocate-ranks, drop-blocks, group-",
    ),
]


@pytest.mark.parametrize(("pipeline", "kind", "said"), UNKNOWN)
def test_a_pipeline_that_is_misspelt_or_misordered(
    pipeline: str, kind: type[Exception], said: str, program: gp.Program
) -> None:
    with pytest.raises(kind, match=said):
        gp.Pipeline.parse(pipeline)(program)


def test_a_recipe_that_is_unknown(prune: Callable[..., Any]) -> None:
    with pytest.raises(RegistryError, match="no recipe 'fsp'; did you mean fasp"):
        prune(recipe="fsp")


def test_a_forward_that_torch_refuses() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(TraceError, match=r"cannot capture Branching at .*test_bad_input\.py:\d+ \(return x"):
        gp.trace(Branching(), (torch.randn(3),))


def test_a_program_from_which_nothing_was_cut(program: gp.Program) -> None:
    with pytest.raises(WriteBackError, match="nothing was cut from this program; apply a plan first"):
        program.write_back(nn.Linear(1, 1))
    assert replace(program, facts={}).facts == {}


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("rewriting.rewrite.Rewrite", marks=pytest.mark.slow),
        pytest.param("reconstructions.refit.Refit", marks=pytest.mark.slow),
        "verification.verify.Verify",
        "calibration.calibrate.Calibrate",
    ],
)
def test_an_interrupt_leaves_no_output(
    where: str, prune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Never:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"graphprune.passes.{where}.run", interrupted)
        prune()
    assert [path.name for path in tmp_path.iterdir()] == ([] if "calibrate" in where else [".out.run"])
    prune()
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "it went on, and nothing else is left"


def test_an_interrupt_while_saving_leaves_nothing(
    prune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: gp.Plan, path: Path) -> Never:
        assert (path.parent / "model.safetensors").exists(), "the folder is half full by now"
        raise KeyboardInterrupt

    monkeypatch.setattr(gp.Plan, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(recipe="magnitude")
    assert list(tmp_path.iterdir()) == []
