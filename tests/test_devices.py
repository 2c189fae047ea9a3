"""Calibration on another device, and what is refused where there is none."""

from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.errors import CalibrationError
from graphprune.ir.prefetch import Prefetched
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.planning.facts import Eligible
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import Statistics

GIVEN = (Dependencies, Eligible, Calibration, Statistics)


def test_another_device_comes_to_the_same() -> None:
    """``cpu:0`` is the processor under a name for which all is copied there and back, and weights are read ahead."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    program = gp.trace(module, (torch.randn(2, 6),))
    calls: tuple[Any, ...] = tuple(((torch.randn(4, 6),), {}) for _ in range(8))
    steps = "score{by=fasp},allocate{by=uniform,ratio=0.5},select,rewrite,refit,verify"
    here, there = (
        gp.Pipeline((Analyze("free"), Calibrate(batches=calls, device=device), *gp.Pipeline.parse(steps, GIVEN).passes))
        for device in ("cpu", "cpu:0")
    )
    one, two = here(program), there(program)
    assert all(two.weights[name].equal(one.weights[name]) for name in one.weights)


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(CalibrationError, match="there is no device 'cuda' here"):
        gp.Pipeline((Calibrate(device="cuda"),), GIVEN)


def test_weights_that_nobody_asked_for_are_let_go() -> None:
    read = Prefetched({name: torch.ones(1) for name in "abc"}, "cpu:0")
    read.prefetch(["a", "b"])
    assert read["a"].equal(torch.ones(1)) and read.ready.keys() == {"b"}
    read.prefetch(["c"])
    assert read.ready.keys() == {"b", "c"}, "they may be asked for still"
    read.prefetch([])
    assert read.ready.keys() == {"c"} and read["b"].equal(torch.ones(1))


def test_the_processor_itself_reads_nothing_ahead() -> None:
    read = Prefetched({"a": torch.ones(1)}, "cpu")
    read.prefetch(["a"])
    assert not read.ready
