"""The README is true: its code is the example's, its commands exist, its numbers are those of the tables."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.exporters import EXPORTERS
from tests.docs.blocks import blocks, commands

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "".join(block.code for block in blocks(README) if block.kind == "sh")
COMMANDS = sorted({*commands(SHELL), *re.findall(r"(?<=`)graphprune \w[^`]*(?=`)", README)})


def test_the_cnn_is_that_of_the_example() -> None:
    (code,) = (block.code for block in blocks(README) if block.kind == "python")
    example = (ROOT / "tools/examples/prune_cnn.py").read_text(encoding="utf-8")
    assert example.endswith(f'"""\n\n{code}')
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_the_first_lines_say_what_why_and_how_much_better() -> None:
    beginning = "\n".join(README.splitlines()[:10])
    ours, theirs = (re.search(pattern, beginning) for pattern in (r"(\d+) of (\d+) architectures", r"Pruning (\d+)"))
    assert ours and theirs
    total = next(line for line in README.splitlines() if line.startswith("| total |"))
    _, models, graphprune, torch_pruning, _ = total.strip("| ").split(" | ")
    assert (ours[2], ours[1]) == (models, graphprune.split()[0])
    assert theirs[1] == torch_pruning.split()[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_options_exist(command: str) -> None:
    _, name, *words = command.split()
    group: Any = typer.main.get_command(app)
    known = {option for parameter in group.commands[name].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_python_names_exist() -> None:
    names = set(re.findall(r"gp\.(\w+)", README))
    assert "prune" in names and all(hasattr(gp, name) for name in names)


def test_the_number_of_targets() -> None:
    assert f"one of {len(EXPORTERS)} [runtimes]" in README


def test_the_citation_names_the_version() -> None:
    table = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= table.keys()
    assert table["version"] == gp.__version__


def test_hooks_are_local_and_run_the_checks_of_tools_test() -> None:
    table = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = table["repos"]
    assert repository["repo"] == "local"
    checks = (ROOT / "tools/test").read_text(encoding="utf-8")
    for hook in repository["hooks"]:
        program = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert re.search(rf"^check .* {program}\b", checks, re.MULTILINE), program
