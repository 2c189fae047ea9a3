"""What a Python prompt prints of the things that graphprune makes: a few lines that inform, and no tensor."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.display.text_table import text_table


@pytest.fixture(scope="module")
def program(tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]]) -> gp.Program:
    return gp.trace(tiny("llama"), (), inputs("llama"))


def lines(thing: object) -> list[str]:
    """The lines of what is printed, which are those of its repr."""
    assert str(thing) == repr(thing)
    return repr(thing).splitlines()


def test_a_program(program: gp.Program, folder: Path) -> None:
    first, second = lines(program)
    assert re.fullmatch("Program: 14,880 parameters in 20 tensors, 1[67][0-9] operators", first)
    assert re.fullmatch(r"  inputs: input_ids int64\[s\d+, s\d+\], use_cache", second)
    loaded = gp.Pipeline((gp.Analyze(),))(gp.load(folder))
    first, *_, last = lines(loaded)
    assert first.startswith(f"Program of {folder}: 14,880 parameters") and last.startswith("  facts: Dependencies, Eli")


def test_dependencies(program: gp.Program) -> None:
    head, titles, *rows = lines(gp.analyze(program))
    assert head == "groups that can be cut: 10, axes that cannot: 1"
    assert titles.split()[:4] == ["indices", "group", "times", "size"]
    assert len(rows) == 6 and any(row.startswith("query heads per KV head  model.layers.*.self_attn.") for row in rows)


def test_plans(program: gp.Program, tmp_path: Path) -> None:
    plan = gp.plan(program, ratio=0.5)
    head, *rows = lines(plan)
    assert head.startswith(
        f"Plan for the model {program.fingerprint()} (score magnitude, align 1, destination free): 9 g"
    )
    assert rows[-1].split() == [
        "40", "neurons", "model.layers.*.mlp.gate_proj.weight:0", "->", "20", "in", "2", "layers",
    ]  # fmt: skip
    plan.save(tmp_path / "plan.json")
    loaded = lines(gp.Plan.load(tmp_path / "plan.json"))
    assert loaded[0] == head and loaded[-1].split()[:2] == ["groups", "model.layers.*.mlp.gate_proj.weight:0"]
    assert lines(gp.Plan("cafe", {}, {}, {}, ("a.7",), {"w": 3, "v": 5})) == [
        "Plan for the model cafe: 0 groups cut", "  dropped: a.7", "  2 weights become factors of ranks 3 to 5",
    ]  # fmt: skip


def test_sensitivities(program: gp.Program) -> None:
    small = gp.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(8, 4),))
    found = gp.sensitivity(small, batches=[((torch.randn(8, 4),), {}) for _ in range(8)], ratios=(0.25, 0.5))
    head, row = lines(found)
    assert head.startswith("Sensitivities of 1 groups: 4 trials, dense loss 0.0000 squared error")
    assert row.split()[:2] == ["neurons", "0.weight:0"] and row.endswith("at 50% cut")


def test_long_tables_are_shortened() -> None:
    rows = [(f"name{i}", 10**i) for i in range(20)]
    found = text_table(rows, ("name", "n"), limit=3)
    assert found == ["name     n", "name0    1", "name1   10", "name2  100", "... and 17 more"]
    assert text_table([]) == []
