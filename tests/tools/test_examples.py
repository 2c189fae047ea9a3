"""The examples do what they show."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphprune.passes.scores import SCORES
from tools.examples import custom_score, export_onnx, inspect_model, prune_language_model

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def scores_as_before() -> Iterator[None]:
    before = dict(SCORES._table)
    yield
    SCORES._table.clear()
    SCORES._table.update(before)


@pytest.mark.slow
def test_a_cnn_with_half_of_its_channels_retains_its_accuracy(capsys: Output) -> None:
    runpy.run_module("tools.examples.prune_cnn")
    output = capsys.readouterr().out
    measured = re.search(r"right: ([\d.]+) before, ([\d.]+) after", output)
    assert measured and float(measured[1]) > 0.85 and float(measured[2]) > float(measured[1]) - 0.03
    assert f"accuracy {float(measured[2]):.1%}" in output
    dense, small = (int(count.replace(",", "")) for count in re.findall(r"\d+,\d+", output))
    assert small < 0.3 * dense


@pytest.mark.slow
def test_a_cnn_is_pruned_while_it_trains(capsys: Output) -> None:
    runpy.run_module("tools.examples.prune_in_training")
    output = capsys.readouterr().out
    assert len(re.findall(r"^round \d: ", output, re.M)) == 5
    accuracy, parameters = re.findall(r"accuracy ([\d.]+)%, ([\d,]+) parameters", output)[0]
    assert float(accuracy) > 85 and int(parameters.replace(",", "")) < 0.32 * 85_810


def test_a_language_model_is_pruned_by_a_fifth(folder: Path, tmp_path: Path, capsys: Output) -> None:
    prune_language_model.main([str(folder), str(tmp_path / "pruned")], samples=8, length=32)
    assert re.search(r"^perplexity [\d.]+ -> [\d.]+\n[\d,]+ parameters, \d+ tokens$", capsys.readouterr().out, re.M)
    assert (tmp_path / "pruned" / "model.safetensors").is_file()


def test_a_model_is_inspected(folder: Path, capsys: Output) -> None:
    inspect_model.main([])
    cnn = capsys.readouterr().out
    assert "100.0%  can be cut exactly" in cnn and "it is a kernel size (conv2d" in cnn
    inspect_model.main([str(folder)])
    assert "model.layers.0.mlp.gate_proj.weight" in capsys.readouterr().out


@pytest.mark.slow
def test_a_score_of_ones_own_is_better_than_chance(capsys: Output) -> None:
    custom_score.main(epochs=2)
    accuracy = dict(re.findall(r"^(\w+) +([\d.]+)%$", capsys.readouterr().out, re.M))
    assert list(accuracy) == ["dense", "random", "magnitude", "energy"]
    assert float(accuracy["energy"]) > float(accuracy["random"])


def test_an_export_agrees(tmp_path: Path, capsys: Output) -> None:
    export_onnx.main([str(tmp_path)])
    difference = re.search(r"largest difference (\S+)$", capsys.readouterr().out.strip())
    assert difference and float(difference[1]) < 1e-5
    assert (tmp_path / "onnx" / "model.onnx").is_file()
