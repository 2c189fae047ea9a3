"""Weights rounded for a 4-bit export: which ones, and what the next layers see."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import graphprune as gp
from graphprune.errors import PlanError
from graphprune.evaluation.perplexity import logits_function
from graphprune.ir.weights import Layered
from graphprune.passes.reconstructions.round_weights import RoundWeights
from graphprune.planning.facts import Refits, RoundedWeights
from graphprune.solvers.block_rounding import FORMATS, to_nearest
from graphprune.statistics.collector import Calibration


def calibrated(folder: Path, text: Path) -> gp.Program:
    return gp.Pipeline.parse(f"analyze | calibrate{{text={text},samples=16,length=24,moments=none}}")(gp.load(folder))


@pytest.mark.parametrize("to", FORMATS)
def test_inner_layers_are_rounded(folder: Path, text: Path, to: str, caplog: pytest.LogCaptureFixture) -> None:
    program = calibrated(folder, text)
    with caplog.at_level(logging.INFO):
        rounded = RoundWeights(to)(program)
    changed = {name for name in program.parameters if not torch.equal(program.weights[name], rounded.weights[name])}
    assert changed == set(rounded.fact(Refits).tuned) and changed
    assert not any("lm_head" in name or "embed" in name or "norm" in name for name in changed)
    for name in changed:
        weight = rounded.weights[name]
        torch.testing.assert_close(to_nearest(weight, FORMATS[to]), weight, rtol=1e-5, atol=1e-6)
    fact = rounded.fact(RoundedWeights)
    assert "model.embed_tokens.weight" in fact.left and fact.by_weight.keys() == changed
    assert f"rounded {len(changed)} weights to {to}: outputs of their layers change by" in caplog.text


def test_outputs_change_less_than_by_rounding_to_nearest(folder: Path, text: Path) -> None:
    program = calibrated(folder, text)
    rounded = RoundWeights()(program)
    names = rounded.fact(Refits).tuned
    nearest = {name: to_nearest(program.weights[name], FORMATS["int4"]) for name in names}
    plain = program.with_facts(weights=Layered((nearest, program.weights)))
    ids = program.fact(Calibration).batches[-1][0]
    with torch.no_grad():
        dense, own, other = (logits_function(one)(ids) for one in (program, rounded, plain))
    assert (own - dense).norm() < 0.9 * (other - dense).norm()


def test_a_run_rounds_after_its_refit(folder: Path, text: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": "fasp", "sparsity": 0.2, "samples": 16, "length": 24, "align": 8}
    gp.prune(folder, calibration=text, output=tmp_path / "small", rounding="int4", **options)
    report = json.loads((tmp_path / "small/report.json").read_text())
    assert any("weights to int4" in note for note in report["notes"])
    small = gp.load(tmp_path / "small")
    weight = small.weights["model.layers.1.mlp.down_proj.weight"]
    torch.testing.assert_close(to_nearest(weight, FORMATS["int4"]), weight, rtol=1e-5, atol=1e-6)


def test_unknown_format() -> None:
    with pytest.raises(PlanError, match=r"weights cannot be rounded to 'int3'; did you mean int4\?"):
        RoundWeights(to="int3").check()
