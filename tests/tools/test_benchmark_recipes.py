"""The benchmark of recipes measures what it says, keeps it, and goes on where it was."""

import sys
from pathlib import Path

import pytest

import graphprune as gp
from tools import benchmark_recipes
from tools.recipe_benchmark.record import DENSE, Record, Run, append, read
from tools.recipe_benchmark.table import interval, table
from tools.recipe_benchmark.work import macs

RUN = Run("fasp", 0.2, 4, 16)


def test_records_are_kept_and_a_broken_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    kept = [Record(Run(DENSE, 0.0, 0, 0), right={"q": [True]}), Record(RUN, perplexity={"t": 2.0})]
    for record in kept:
        append(path, record)
    with path.open("a") as file:
        file.write('{"run": {"rec')
    assert list(read(path)) == kept


def test_a_table_compares_with_the_dense_model() -> None:
    text, questions = "data/wikitext2.test.raw.gz", "q.jsonl"
    dense = Record(Run(DENSE, 0.0, 0, 0), perplexity={text: 2.0}, right={questions: [True] * 8}, parameters=2_000_000)
    pruned = Record(RUN, perplexity={text: 3.0}, right={questions: [False] * 8}, parameters=1_500_000, removed=0.25)
    lines = list(table([dense, pruned, Record(Run("flap", 0.2, 4, 16), fault="PlanError: no")]))
    titles = "| WikiText-2 perplexity, lower is better | q accuracy (difference to dense) | parameters |"
    assert lines[0].startswith(f"| recipe | parameters removed {titles}")
    assert lines[2:4] == [
        "| dense | 0.0% | 2.00 | 100.0% | 2.0 M | 0 K | 0 | 0 s | 0 MiB |",
        "| fasp | 25.0% | 3.00 | 0.0% (-100.0% to -100.0%) | 1.5 M | 0 K | 0 | 0 s | 0 MiB |",
    ]
    assert lines[4] == "\n`flap` at 20%: PlanError: no"
    without = Record(Run("liar", 0.3, 8, 16), perplexity={text: 4.0}, parameters=1_500_000, removed=0.25)
    assert list(table([dense, without]))[3] == "| liar | 25.0% | 4.00 |  | 1.5 M | 0 K | 0 | 0 s | 0 MiB |"
    assert list(table([pruned, without]))[3] == "| liar | 8 | 25.0% | 4.00 |  | 1.5 M | 0 K | 0 | 0 s | 0 MiB |"


def test_the_interval_is_that_of_pairs() -> None:
    right, dense = [True] * 60 + [False] * 40, [True] * 70 + [False] * 30
    low, high = interval(right, dense)
    assert low < -0.1 < high <= 0
    assert interval(dense, dense) == (0, 0)


def test_macs_are_those_of_the_layers(folder: Path) -> None:
    program = gp.load(folder)
    linear = sum(w.numel() for n in program.parameters if (w := program.weights[n]).dim() == 2)
    tied = 1 if "lm_head.weight" in program.ties else 0
    embedding = program.weights["model.embed_tokens.weight"].numel() * (1 - tied)
    assert macs(program) >= linear - embedding


def test_what_is_known_is_not_run_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def one(_: object, run: Run, options: object) -> Record:
        ran.append(run.recipe)
        return Record(run)

    monkeypatch.setattr(benchmark_recipes, "alone", one)
    arguments = ["--model", str(folder), "--calibration", "c", "--evaluate", "e", "--lines", str(tmp_path / "l.jsonl")]
    for recipes in (["fasp"], ["fasp", "flap"]):
        monkeypatch.setattr(sys, "argv", ["benchmark_recipes", *arguments, "--recipes", *recipes])
        benchmark_recipes.main()
    assert ran == [DENSE, "fasp", "flap"]
