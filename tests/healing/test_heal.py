"""Healed folders are what the pruned ones were, better; a killed run ends with the bits of an uninterrupted one."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.errors import CalibrationError, ExportError, LoadError, OptionError
from graphprune.exporters.model_folders.folder_files import copy_companion_files
from graphprune.exporters.targets import pt2
from graphprune.healing import training_state
from graphprune.healing.healing_record import Healing

SMALL: dict[str, Any] = {"tokens": "2k", "length": 16, "batch": 8, "held_out": 4, "evaluations": 4, "rate": 0.002}
Heal = Callable[..., Healing]


@pytest.fixture(scope="module")
def pruned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock folder, of which a third of the neurons is removed."""
    path = tmp_path_factory.mktemp("pruned") / "stock"
    gp.prune(folder, recipe="magnitude", sparsity=0.15, align=1, output=path)
    return path


@pytest.fixture
def heal(pruned: Path, folder: Path, text: Path, tmp_path: Path) -> Heal:
    """Heal the pruned folder into `healed` of the test's folder, with changed options."""

    def run(**changes: Any) -> Healing:
        options = {"pruned": pruned, "teacher": folder, "data": [text], "output": tmp_path / "healed", **SMALL}
        return gp.heal(**{**options, **changes})

    return run


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_healed_folder_is_nearer_to_the_dense_model(heal: Heal, pruned: Path, text: Path, tmp_path: Path) -> None:
    healing = heal(evaluate=[text], windows=8)
    before, after = healing.held_out
    assert before is not None and after is not None and after < 0.8 * before
    assert healing.tokens == 2048 == healing.curve[-1].tokens and healing.steps == 16
    assert [point.step for point in healing.curve] == [0, 4, 8, 12, 16] and healing.curve[-1].rate < 0.001
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "healed")
    shapes = {name: tensor.shape for name, tensor in weights_of(pruned).items()}
    assert {name: tensor.shape for name, tensor in weights_of(tmp_path / "healed").items()} == shapes
    assert sum(weight.numel() for weight in loaded.parameters()) == gp.Report.load(pruned).parameters_after
    report = gp.Report.load(tmp_path / "healed")
    assert report.recipe == "magnitude" and set(report.healing["perplexity"]) == {str(text)}
    assert [point["held_out_loss"] for point in report.healing["curve"]] == [one.held_out_loss for one in healing.curve]
    assert f"from {before:.4f} to {after:.4f}" in (tmp_path / "healed" / "README.md").read_text()
    gp.verify_folder(tmp_path / "healed")
    assert (tmp_path / "healed" / "plan.json").is_file() and list(tmp_path.iterdir()) == [tmp_path / "healed"]


def test_a_file_repeats_the_run(heal: Heal, tmp_path: Path) -> None:
    from graphprune.healing.heal_options import HealOptions
    from graphprune.workflows.runs import run_file

    heal(tokens="256")
    again = run_file.read(tmp_path / "healed" / "heal.yaml", HealOptions)
    gp.heal(**again, output=tmp_path / "again")
    first, second = weights_of(tmp_path / "healed"), weights_of(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in first)


class Killed(BaseException):
    """An end without a chance to clean up."""


@pytest.mark.parametrize(("train", "aim"), [("all", "logits"), ("lora", "hidden")])
def test_a_killed_run_ends_with_the_same_bits(
    heal: Heal, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str, aim: str
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(" ".join(text.read_text().split()[:500]))  # it is repeated, so that the teacher is stored
    whole = heal(data=[short], train=train, aim=aim, output=tmp_path / "whole")
    store, stored = training_state.store, []

    def once(workspace: Any, snapshot: Any) -> None:
        store(workspace, snapshot)
        stored.append(snapshot.progress.step)
        if len(stored) == 2:
            raise Killed

    monkeypatch.setattr("graphprune.healing.trainer.store", once)
    with pytest.raises(Killed):
        heal(data=[short], train=train, aim=aim)
    assert not (tmp_path / "healed").exists() and (tmp_path / ".healed.run").is_dir()
    continued = heal(data=[short], train=train, aim=aim)
    assert stored == [4, 8, 12, 16] and continued.curve == whole.curve
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "healed")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_is_ended_again_before_its_first_checkpoint_loses_nothing(
    heal: Heal, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = training_state.store

    def once(workspace: Any, snapshot: Any) -> None:
        store(workspace, snapshot)
        raise Killed

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("graphprune.healing.trainer.store", once)
    with pytest.raises(Killed):
        heal()
    kept = sorted((tmp_path / ".healed.run").rglob("*"))
    assert any(path.name.startswith("training-") for path in kept)
    for where in ("trainer.restore", "heal.FolderHealing._task", "trainer.Trainer._step"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"graphprune.healing.{where}", interrupted)
            heal()
        assert sorted((tmp_path / ".healed.run").rglob("*")) == kept
    monkeypatch.setattr("graphprune.healing.trainer.store", store)
    assert len(heal().curve) == 5 and list(tmp_path.iterdir()) == [tmp_path / "healed"]


@pytest.mark.slow
@pytest.mark.parametrize("destination", ["per-layer", "free"])
def test_other_destinations(folder: Path, heal: Heal, tmp_path: Path, destination: str) -> None:
    gp.prune(folder, recipe="magnitude", sparsity=0.15, destination=destination, output=tmp_path / "pruned")
    before, after = heal(pruned=tmp_path / "pruned", tokens="1k").held_out
    assert before is not None and after is not None and after < before
    assert (tmp_path / "healed" / "onnx").is_dir() == (destination == "free")
    assert gp.load(tmp_path / "healed").count() == gp.Report.load(tmp_path / "pruned").parameters_after
    gp.verify_folder(tmp_path / "healed")


@pytest.mark.slow
def test_a_folder_that_holds_a_graph(folder: Path, heal: Heal, tmp_path: Path) -> None:
    program = gp.load(folder)
    (tmp_path / "graph").mkdir()
    pt2.save(program, tmp_path / "graph" / "model.pt2")
    copy_companion_files(folder, tmp_path / "graph")
    heal(pruned=tmp_path / "graph", teacher=None, tokens="256", train="lora", rank=2)
    healed = gp.load(tmp_path / "healed")
    name = "model.layers.0.mlp.up_proj.weight"
    assert healed.count() == program.count() and not torch.equal(healed.weights[name], program.weights[name])
    assert gp.Report.load(tmp_path / "healed").destination == "free"


def test_norms_alone_are_trained(heal: Heal, pruned: Path, tmp_path: Path) -> None:
    heal(train="norms", aim="labels", teacher=None, tokens="512")
    before, after = weights_of(pruned), weights_of(tmp_path / "healed")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if before[name].dim() == 1}


def test_early_stop_and_the_best_weights(heal: Heal, pruned: Path, tmp_path: Path) -> None:
    healing = heal(rate=30.0, patience=1)
    assert (
        healing.stopped_early and healing.best == 0 and healing.steps == 4 and "choose a lower rate" in healing.notes[0]
    )
    before, after = weights_of(pruned), weights_of(tmp_path / "healed")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_steps_in_parts_give_the_same_weights(heal: Heal, tmp_path: Path) -> None:
    heal(tokens="512", output=tmp_path / "whole")
    heal(tokens="512", accumulate=4, checkpointing=True)
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "healed")
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"pruned": "missing"}, LoadError, "the pruned model missing does not exist; expected a folder with a model"),
        ({"teacher": "missing"}, LoadError, "the teacher missing does not exist"),
        ({"data": ["missing.txt"]}, LoadError, "the text missing.txt does not exist"),
        ({"data": [], "teacher": None}, TypeError, "missing a required argument: 'data'"),
        ({"output": None}, TypeError, "missing a required argument: 'output'"),
        ({"length": 3000}, CalibrationError, "have 4,001 tokens, but two windows of 3000 are needed"),
        ({"teacher": None, "aim": "logits"}, OptionError, "aim='logits' needs a teacher"),
        ({"aim": "labels"}, OptionError, "aim='labels' needs no teacher"),
        ({"loss": len}, OptionError, "omit loss or teacher"),
        ({"tokens": "many"}, OptionError, "tokens must be a number such as 20000, 500k or 1M, got 'many'"),
        ({"batch": 8, "accumulate": 3}, OptionError, "accumulate must divide batch, got 3 parts of 8"),
        ({"rate": 1e30}, CalibrationError, "choose a lower rate|choose a rate below"),
        ({"train": "some"}, OptionError, "train must be one of|got 'some'"),
    ],
)
def test_bad_input(heal: Heal, tmp_path: Path, changes: dict[str, Any], error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        heal(**changes)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--tokens",
        "256",
        "--length",
        "16",
        "--batch",
        "8",
        "--train",
        "norms",
        "--output",
        f"{tmp_path}/healed",
    ]
    app(["heal", str(folder), "--data", str(text), *options], standalone_mode=False)
    assert "256 tokens in 2 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        app(["heal", str(folder), "--data", str(text), *options])
    assert stopped.value.code == 2 and "exists already; choose another output" in capsys.readouterr().err


def test_the_output_is_not_the_input(heal: Heal, pruned: Path) -> None:
    with pytest.raises(ExportError, match="is or contains the source"):
        heal(output=pruned, force=True)


def test_a_teacher_of_another_vocabulary(heal: Heal, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    table = json.loads((other / "tokenizer.json").read_text())
    words = table["model"]["vocab"]
    words["w5"], words["w6"] = words["w6"], words["w5"]
    (other / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(CalibrationError, match=r"has another vocabulary.*'w[56]' is"):
        heal(teacher=other)
    assert not (tmp_path / "healed").exists()


def test_a_teacher_of_other_classes(heal: Heal, tiny: Any, tmp_path: Path) -> None:
    tiny("llama", vocab_size=70).save_pretrained(tmp_path / "other")
    with pytest.raises(CalibrationError, match="predicts 70 classes, the pruned model 60"):
        heal(teacher=tmp_path / "other")
    tiny("vit").save_pretrained(tmp_path / "image")
    with pytest.raises(CalibrationError, match="image does not run on the inputs of the pruned model"):
        heal(teacher=tmp_path / "image")
    assert {path.name for path in tmp_path.iterdir()} == {"other", "image"}


def test_weights_that_are_not_finite(heal: Heal, pruned: Path, tmp_path: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(pruned)
    with torch.no_grad():
        next(model.parameters())[5] = float("nan")
    shutil.copytree(pruned, tmp_path / "broken")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(CalibrationError, match="predicts numbers that are not finite"):
        heal(pruned=tmp_path / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_progress_names_tokens_and_their_rate(
    heal: Heal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("graphprune.display.progress.EVERY", 0.05)
    with caplog.at_level(logging.INFO, "graphprune.progress"):
        heal(tokens="1k")
    assert any("healing: " in line and "k tokens" in line and "tokens/s" in line for line in caplog.messages)
