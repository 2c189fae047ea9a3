"""An object of another type than a function takes is one error, which says how to make the right one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import GraphpruneError, OptionError, PipelineError

MODULE = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
INPUT = torch.ones(3, 6)
LOADS = r"; graphprune\.load makes one of .*, graphprune\.trace of a module"


@pytest.fixture(scope="module")
def program() -> gp.Program:
    return gp.trace(MODULE, (INPUT,))


@pytest.fixture(scope="module")
def plan(program: gp.Program) -> gp.Plan:
    return gp.plan(program, sparsity=0.3, recipe="magnitude")


@pytest.mark.parametrize(("value", "shown"), [("folder", "'folder'"), (MODULE, "Sequential")])
def test_no_program(program: gp.Program, plan: gp.Plan, tmp_path: Path, value: Any, shown: str) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "analyze": lambda: gp.analyze(value),
        "plan": lambda: gp.plan(value, sparsity=0.3),
        "apply": lambda: gp.apply(value, plan),
        "verify": lambda: gp.verify(value, program, plan),
        "save": lambda: gp.save(value, output=tmp_path / "saved"),
        "pipeline": lambda: gp.Pipeline.parse("analyze")(value),
        "pass": lambda: gp.Analyze()(value),
    }
    for call in calls.values():
        with pytest.raises(OptionError, match=f"^program must be a Program, got {shown}{LOADS}$"):
            call()
    with pytest.raises(OptionError, match=f"^small must be a Program, got {shown}"):
        gp.verify(program, value, plan)
    assert not (tmp_path / "saved").exists()


def test_no_plan(program: gp.Program) -> None:
    for call in (lambda: gp.apply(program, "runs"), lambda: gp.verify(program, program, "runs")):  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=r"^plan must be a Plan, got 'runs'; graphprune\.Plan\.load reads one"):
            call()


@pytest.mark.parametrize("name", ["load", "evaluate", "ask", "view", "export", "verify_folder"])
def test_no_path(tmp_path: Path, name: str) -> None:
    """Neither a module nor its text is taken for a path."""
    more: dict[str, Any] = {
        "evaluate": {"text": "text.txt"},
        "ask": {"questions": "questions.jsonl"},
        "view": {"output": tmp_path / "page.html"},
        "export": {"target": "onnx", "output": tmp_path / "out"},
    }
    with pytest.raises(OptionError, match=r"^(model|folder) must be a path or a name, got Sequential; "):
        getattr(gp, name)(MODULE, **more.get(name, {}))
    assert list(tmp_path.iterdir()) == []


def test_one_where_several_are_meant(program: gp.Program, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r'^reports must be a sequence: write reports=\("runs",\)$'):
        gp.view(program, output=tmp_path / "page.html", reports="runs")
    with pytest.raises(OptionError, match=r"^folder must be a path or a name, got list; write each folder as"):
        gp.compare(["one", "other"])  # type: ignore[arg-type]
    for passes in ("analyze", gp.Analyze(), ("analyze",)):
        with pytest.raises(
            PipelineError, match=r"be a sequence of them, got .*; write Pipeline\(\(Analyze\(\), \.\.\.\)\)"
        ):
            gp.Pipeline(passes)  # type: ignore[arg-type]


def test_a_tensor_is_no_tuple_of_arguments() -> None:
    with pytest.raises(GraphpruneError, match=r"args is a Tensor .* write graphprune\.prune\(module, \(x,\)\) for a"):
        gp.prune(MODULE, INPUT, sparsity=0.3)
    with pytest.raises(GraphpruneError, match=r"args is a Tensor .* write graphprune\.Pruner\(module, \(x,\)\) for a"):
        gp.Pruner(MODULE, INPUT, sparsity=0.3)  # type: ignore[arg-type]
