"""Runs on models of the hub: named by their commit in every record, and repeated by it."""

import inspect
import json
from pathlib import Path
from typing import Any, Never

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.errors import LoadError, OptionError
from graphprune.reports.report import Report
from graphprune.workflows.hub.hub_commit import tokenizer_of
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.runs.run_record import identity
from tests.hub_cache import HubCache

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    made = HubCache(tmp_path / "hub", monkeypatch)
    made.add("some/net", folder, COMMIT)
    return made


def run(*words: str) -> Any:
    return CliRunner().invoke(app, words, env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_a_run_names_the_commit_and_is_repeated_by_it(cache: HubCache, folder: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    options = ("--recipe", "magnitude", "--sparsity", "0.2", "--align", "1", "--plan-only", "--output")
    done = run("prune", "some/net", *options, str(first))
    assert done.exit_code == 0, done.stderr
    report = Report.load(first)
    assert (report.model, report.base_model, report.revision) == ("some/net", "some/net", COMMIT)
    data = ModelCard.load(first / "README.md").data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("some/net", "finetune")
    assert f"`some/net`, commit {COMMIT}" in (first / "README.md").read_text()
    table = yaml.safe_load((first / "run.yaml").read_text())
    assert (table["model"], table["revision"]) == ("some/net", COMMIT) and "offline" not in table
    cache.add("some/net", folder, OTHER)  # main moves
    done = run("prune", "--config", str(first / "run.yaml"), "--output", str(again))
    assert done.exit_code == 0, done.stderr
    assert Report.load(again).revision == COMMIT and Report.load(again).plan == report.plan


def test_another_commit_is_another_run(cache: HubCache, folder: Path) -> None:
    cache.add("some/net", folder, OTHER, "v2")
    of = [identity(PruneOptions("some/net", sparsity=0.1, revision=commit)) for commit in (COMMIT, OTHER)]
    assert of[0] != of[1] and of[0]["files"] and of[0]["files"].keys() == of[1]["files"].keys()


def test_every_command_for_models_takes_a_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken: dict[str, Any] = {}

    def note(*args: Any, **options: Any) -> Never:
        taken.update(options)
        raise KeyboardInterrupt

    commands = {
        "inspect": ("load", ()), "view": ("view", ("-o", "page.html")),
        "prune": ("prune", ("--sparsity", "0.1", "-o", "o")),
        "apply": ("apply_plan", ("plan", "-o", "o")), "trim": ("trim", ("--text", "t", "-o", "o")),
        "sensitivity": ("sensitivity", ("--text", "t", "-o", "o")), "eval": ("evaluate", ("--text", "t")),
        "ask": ("ask", ("--questions", "q")), "export": ("export", ("--target", "onnx", "-o", "o")),
        "heal": ("heal", ("--data", "t", "-o", "o")),
    }  # fmt: skip
    for command, (function, words) in commands.items():
        taken.clear()
        assert {"revision", "offline"} <= inspect.signature(getattr(gp, function)).parameters.keys(), function
        monkeypatch.setattr(f"graphprune.api.{function}", note)
        done = run(command, "some/net", *words, "--revision", "v2", "--offline")
        assert done.exit_code == 130, (command, done.stderr)
        assert (taken["revision"], taken["offline"]) == ("v2", True), command


def test_functions_read_the_cache(cache: HubCache, text: Path) -> None:
    loaded = gp.load("some/net", revision="main", offline=True)
    assert loaded.source is not None and loaded.source.path.name == COMMIT
    assert gp.evaluate("some/net", text, length=16, windows=2, revision=COMMIT).perplexity > 1
    done = run("inspect", "some/net", "--revision", "v9", "--offline", "--json")
    assert done.exit_code == 2 and "no snapshot of revision v9" in done.stderr
    with pytest.raises(LoadError, match="only those have a revision; omit main"):
        gp.load(loaded.source.path, revision="main")


def test_a_module_has_no_revision(tiny: Any, inputs: Any) -> None:
    with pytest.raises(OptionError, match="revision is an option for a model in files; omit it"):
        gp.prune(tiny("vit"), kwargs=inputs("vit"), sparsity=0.1, revision="main")


def test_the_tokenizer_of_the_repository_serves_its_files(cache: HubCache, folder: Path, tmp_path: Path) -> None:
    """A file in a folder of its own, as conversions to ONNX lie on the hub."""
    parts = tmp_path / "parts"
    (parts / "onnx").mkdir(parents=True)
    (parts / "onnx" / "model.onnx").write_bytes(b"")
    (parts / "tokenizer.json").write_text(json.dumps({}))
    snapshot = cache.add("some/onnx", parts, COMMIT)
    options = PruneOptions("some/onnx/onnx/model.onnx", sparsity=0.1)
    assert tokenizer_of(options) == snapshot
    assert tokenizer_of(PruneOptions("some/net", sparsity=0.1)) is None
    assert tokenizer_of(PruneOptions("some/onnx/onnx/model.onnx", sparsity=0.1, tokenizer=folder)) == str(folder)
