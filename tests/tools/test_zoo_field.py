"""The field family of the zoo: what a stage reports, and a model that passes all of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from tests.zoo import field
from tests.zoo.field.case import FieldModel, Inputs, normal
from tests.zoo.field.detectors import _nms, _roi_align
from tools.zoo_benchmark import field_modules, noise
from tools.zoo_benchmark.field_table import field_table
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.outcomes import STAGES, Outcomes, StageError
from tools.zoo_benchmark.record import Record, Report

HALF = Goal(ratio=0.5)


class Detector(nn.Module):
    """A backbone that can be captured in a whole that cannot: values decide what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.backbone(images * 2).mean((2, 3))
        return scores if bool((scores > 0).any()) else -scores


def images(seed: int) -> Inputs:
    return (normal(2, 3, 8, 8, seed=seed),), {}


def outcomes() -> Outcomes:
    return Outcomes(Report(Record("graphprune", "field/model"), lambda _: None))


def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the stages that write files, which take long."""
    monkeypatch.setattr(field_modules, "_saved_and_exported", lambda *_: None)


def test_every_name_says_what_it_needs() -> None:
    assert len(field.NAMES) >= 28
    assert all(isinstance(field.missing(name), list) for name in field.NAMES)
    with pytest.raises(KeyError, match="the field family has no 'nothing'"):
        field.get("nothing")


def test_a_part_is_pruned_where_the_whole_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    without_files(monkeypatch)
    noted = outcomes()
    field_modules.run_module(FieldModel(Detector, images, part="backbone"), noted, HALF)
    assert noted.record.outcomes == dict.fromkeys(STAGES[:5], "ok")
    assert noted.record.removed > 0.4


def test_a_failure_ends_only_the_stages_that_need_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    without_files(monkeypatch)

    def fit(*_: object) -> float:
        return float("nan")

    noted = outcomes()
    field_modules.run_module(FieldModel(Detector, images, part="backbone", fit=fit), noted, HALF)
    assert noted.record.outcomes["trained"] == "the loss is nan"
    noted = outcomes()
    field_modules.run_module(FieldModel(Detector, images), noted, HALF)
    assert list(noted.record.outcomes) == ["captured"]
    assert noted.record.outcomes["captured"].startswith("TraceError: torch.export cannot capture Detector")


def test_the_table_has_a_row_for_each_model_and_the_failures_below() -> None:
    noted = outcomes()
    with noted.stage("captured"):
        pass
    with noted.stage("cut"):
        raise StageError("no group\nis free")
    noted.record.removed = 0.25
    lines = list(field_table([noted.record]))
    assert lines[2] == "| model | 25% | ok | fails | - | - | - | - | - |"
    assert lines[-1] == "- `model` (cut): no group"


def test_the_proof_refuses_noise_in_the_place_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    program = gp.trace(Detector().backbone.eval(), images(0)[0])
    plan = gp.plan(program, ratio=0.5, recipe="magnitude")
    small = gp.apply(program, plan)
    assert noise.judged_by_proof(program, small, plan) == noise.REFUSED
    accepts: Callable[..., None] = lambda *_: None  # noqa: E731 - a proof that sees nothing
    monkeypatch.setattr(gp, "verify", accepts)
    assert noise.judged_by_proof(program, small, plan) == noise.PASSED


def test_suppression_keeps_the_best_of_boxes_that_overlap() -> None:
    pytest.importorskip("torchvision")
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    assert _nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]


def test_features_in_a_box_are_those_under_it() -> None:
    features = torch.arange(16.0).reshape(1, 1, 4, 4)
    pooled = _roi_align(features, torch.tensor([[0.0, 0, 0, 4, 4], [0, 2, 2, 4, 4]]), 2, 1.0, 1)
    assert pooled[:, 0].tolist() == [[[2.5, 4.5], [10.5, 12.5]], [[10.0, 11.0], [14.0, 15.0]]]


def test_the_requirements_pin_versions() -> None:
    path = Path(__file__).parents[2] / "tools/zoo_benchmark/field_requirements.txt"
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
    assert not {line.split("==")[0] for line in lines} & {"torch", "torchvision", "transformers", "timm"}
