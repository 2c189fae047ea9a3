"""A budget in latency: exact arithmetic on a made-up table, and one real measurement."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.axes.groups import Curve, Dependencies
from graphprune.errors import LoadError, PlanError
from graphprune.execution import latency
from graphprune.execution.latency import Subgraph
from graphprune.ir.program import Program
from graphprune.passes.calibration.measure_latency import MeasureLatency
from graphprune.planning.budget import Budget, Knob


def made_up(part: Subgraph, runtime: str) -> float:
    """A nanosecond for every weight of a linear map."""
    maps = (node for node in part.graph.nodes if node.target is torch.ops.aten.linear.default)
    return sum(prod(part.shapes[str(node.args[1].target)][0]) for node in maps) * 1e-9 + 1e-12


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4)]
    model = nn.Sequential(*layers)
    return gp.Analyze()(gp.trace(model, (torch.randn(3, 4),)))


def budget(program: Program, target: int = 0) -> Budget:
    found = program.fact(Dependencies)
    return Budget(found, [Knob.of([g]) for g in found.groups], target, program.parameters, "latency")


def test_latencies_add_up_and_multiply(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(latency, "measure", made_up)
    file = tmp_path / "table.json"
    measured = MeasureLatency(table=str(file))(program)
    found = budget(measured)
    assert found.total == 4 * 10 + 10 * 6 + 6 * 4 + 4 * 4
    first, second, third = (group.name for group in measured.fact(Dependencies).groups)
    left = 4 * 7.5 + 7.5 * 4.25 + 4.25 * 4 + 4 * 4  # in between the widths that were measured
    assert found.total - found.removed({first: 7.5, second: 4.25, third: 4}) == pytest.approx(left, abs=0.1)
    solved = budget(measured, 40)
    shares = solved.solve(lambda pressure: dict.fromkeys((first, second, third), 1 - pressure))
    assert solved.removed(solved.widths(shares)) == pytest.approx(40, abs=0.01)

    monkeypatch.setattr(latency, "measure", None)  # what is in the file is not measured again
    assert budget(MeasureLatency(table=str(file))(program)).total == found.total
    assert "threads" in json.loads(file.read_text())["machine"]


def test_layers_that_are_alike_are_measured_once(
    tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    seen: list[str] = []

    def count(part: Subgraph, runtime: str) -> float:
        seen.append(part.key)
        return 1.0

    monkeypatch.setattr(latency, "measure", count)
    counts = []
    for layers in (1, 2):
        program = gp.trace(tiny("llama", num_hidden_layers=layers, use_cache=False), (), inputs("llama"))
        found = MeasureLatency("fasp", table=str(tmp_path / "table.json"))(gp.Analyze()(program)).fact(Dependencies)
        counts.append(len(seen))
        assert sum(isinstance(term, Curve) and bool(term.dims) for term in found.terms["latency"]) == 2 * layers
    assert (
        len(seen) == len(set(seen)) and counts[1] == counts[0] + 1
    )  # more layers have another rest, and nothing else that is new


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_real_measurement_is_sane(runtime: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 4))
    program = gp.Analyze()(gp.trace(model, (torch.randn(3, 4),)))
    measured = MeasureLatency(runtime=runtime, table=str(tmp_path / "table.json"), points=2)(program)
    for term in measured.fact(Dependencies).terms["latency"]:
        assert isinstance(term, Curve) and term.factor > 0
        for points in term.points:
            widths, shares = zip(*points, strict=True)
            assert list(widths) == sorted(widths) and min(shares) > 0 and list(shares) == sorted(shares)
            assert shares[-1] == 1


def test_a_plan_meets_a_latency(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure", made_up)
    monkeypatch.setattr(latency, "_known", {})
    plan = gp.plan(program, sparsity=0.4, budget="latency")
    small = gp.apply(program, plan)
    weights = sum(prod(shape) for name, shape in small.shapes().items() if len(shape) == 2)
    assert weights == pytest.approx(0.6 * 140, abs=5)


def test_what_cannot_be_measured_is_said(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match="no runtime 'tpu'; choose one of onnxruntime, onnxruntime-cuda, torch"):
        MeasureLatency(runtime="tpu")(program)
    file = tmp_path / "table.json"
    file.write_text("{}")
    with pytest.raises(LoadError, match="is no table of latencies"):
        MeasureLatency(table=str(file))(program)
    file.write_text(json.dumps({"format": 1, "runtime": "torch", "machine": "", "seconds": {}}))
    with pytest.raises(LoadError, match="of format 1 for torch, not 1 for onnxruntime"):
        MeasureLatency(table=str(file))(program)

    def fail(*given: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(latency, "_in_torch", fail)
    with pytest.raises(PlanError, match="torch cannot run a part of the model, .*reason: no kernel"):
        MeasureLatency(runtime="torch", table=str(tmp_path / "other.json"))(program)
