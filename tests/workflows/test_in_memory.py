"""One call prunes a module of a user with its data, loss and metric, saves it, and loads it into a new one."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import graphprune as gp
from graphprune.errors import CalibrationError, ExportError, LoadError, OptionError, PlanError, TraceError
from graphprune.workflows.recipes.auto_recipe import NO_DATA


class Net(nn.Module):
    """Two convolutions with norms around a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv, self.last = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.last(self.conv(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def batches(count: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count * 8, 3, 6, 6, generator=generator)
    return DataLoader(TensorDataset(images, images.mean((1, 2, 3)).mul(20).long().clamp(0, 3)), batch_size=8)


def loss(output: Tensor, batch: Any) -> Tensor:
    return cross_entropy(output, batch[1])


def accuracy(output: Tensor, batch: Any) -> Any:
    return (output.argmax(1) == batch[1]).float().mean()


def net(training: bool = True) -> Net:
    torch.manual_seed(0)
    return Net().train(training)


@pytest.fixture(scope="module")
def pruned() -> gp.Result:
    return gp.prune(net(), data=batches(), loss=loss, metric=accuracy, ratio=0.5)


def test_the_module_is_narrower_and_runs_in_both_modes(pruned: gp.Result) -> None:
    module = pruned.module
    assert isinstance(module, Net) and module.training
    assert (module.stem.out_channels, module.conv.out_channels, module.head.in_features) == (4, 4, 4)
    for mode in (True, False):
        assert module.train(mode)(torch.randn(2, 3, 6, 6)).shape == (2, 4)
    module.train()


def test_the_report_has_widths_proof_metric_and_seconds(pruned: gp.Result) -> None:
    report = pruned.report
    assert (report.recipe, report.model, report.destination) == ("auto", "Net", "free")
    assert all((before, after) == (8, 4) for before, after in report.widths.values())
    assert report.parameters_after == sum(p.numel() for p in pruned.module.parameters())
    assert report.errors["masked original and cut graph"] < report.tolerance
    ((name, (before, after)),) = report.metrics.items()
    assert name == "accuracy on the data of the run" and 0 <= before <= 1 and 0 <= after <= 1
    assert {"gradients", "refit", "batch-norm-statistics", "metric"} <= report.seconds.keys()
    assert report.calibration is not None and "float32[8, 3, 6, 6], int64[8]" in report.calibration.source
    assert "the module is as narrow as the graph" in report.notes
    assert pruned.plan.made_by["score"] == "k-obs" and pruned.program is not None
    assert "accuracy on the data of the run: " in repr(pruned)


def test_a_saved_module_is_loaded_into_a_new_one(
    pruned: gp.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "graphprune.workflows.free_destination._export", lambda program, folder: ("ONNX and graph", 0.0)
    )
    pruned.save(tmp_path / "out")
    new = gp.load(tmp_path / "out", into=Net()).eval()
    x = torch.randn(2, 3, 6, 6)
    pruned.module.eval()
    torch.testing.assert_close(new(x), pruned.module(x), rtol=0, atol=0)
    pruned.module.train()
    assert gp.load(tmp_path / "out").count() == pruned.report.parameters_after
    assert json.loads((tmp_path / "out" / "module.json").read_text())["class"].endswith("Net")
    wrong = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(LoadError, match=r"out does not fit Sequential.*expected a new .*Net, built with the same"):
        gp.load(tmp_path / "out", into=wrong)
    assert isinstance(wrong[0], nn.Conv2d) and wrong[0].out_channels == 8
    with pytest.raises(LoadError, match=r"module.json describes no pruned module.*result.save"):
        gp.load(tmp_path, into=Net())


@pytest.mark.parametrize(
    ("options", "score", "passes"),
    [
        ({"data": batches()}, "fasp", {"refit", "batch-norm-statistics"}),
        ({"args": (torch.randn(2, 3, 6, 6),)}, "magnitude", set[str]()),
    ],
)
def test_the_recipe_follows_the_data(
    options: Any, score: str, passes: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = gp.prune(net(), ratio=0.5, inplace=False, **options)
    assert result.plan.made_by["score"] == score and passes <= result.report.seconds.keys()
    assert (NO_DATA in result.report.notes) == (NO_DATA in caplog.text) == ("data" not in options)


def test_a_copy_leaves_the_module_alone() -> None:
    module = net(False)
    result = gp.prune(module, (torch.randn(2, 3, 6, 6),), ratio=0.5, inplace=False)
    assert module.stem.out_channels == 8 and result.module is not module
    assert not result.module.training


def test_an_optimizer_follows() -> None:
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    loss(module(torch.randn(2, 3, 6, 6)), (0, torch.tensor([0, 1]))).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    gp.prune(module, (torch.randn(2, 3, 6, 6),), ratio=0.5, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters()}


def test_a_program_is_pruned_with_data() -> None:
    data = batches()
    program = gp.trace(net(False), (next(iter(data))[0],))
    result = gp.prune(program, data=({"x": x} for x, _ in data), ratio=0.5)
    assert result.module is None and result.program is not None and result.program.count() < program.count()


def failing_after(calls: int) -> Callable[[Any, Any], Any]:
    """A metric that fails after so many calls."""
    seen: list[None] = []

    def metric(output: Tensor, batch: Any) -> Any:
        seen.append(None)
        return accuracy(output, batch) if len(seen) <= calls else torch.tensor("none")

    return metric


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": batches(), "metric": failing_after(4)}, CalibrationError, "the metric fails"),
        ({"data": batches(), "loss": lambda o, b: cross_entropy(o, b[1] + 9)}, CalibrationError, "out of bounds"),
        ({"data": [torch.randn(2, 5, 6, 6)]}, CalibrationError, "Net does not run on the batch"),
        ({"data": []}, CalibrationError, "the data has no batch"),
        ({}, TraceError, r"prune\(\) has no inputs of Net .*missing a required argument: 'x'.*pass data"),
        ({"data": batches(), "recipe": "no"}, gp.GraphpruneError, "no recipe 'no'"),
        ({"data": batches(), "recipe": "lamp-x"}, gp.GraphpruneError, "did you mean lamp"),
        ({"data": batches(), "recipe": "bn-scale"}, gp.GraphpruneError, "bn-scale is a score, not a recipe"),
        ({"args": (torch.randn(2, 3, 6, 6),), "protect": ("*",)}, PlanError, "no group is left.* groups are protected"),
        ({"args": (torch.randn(2, 3, 6, 6),), "output": Path(__file__).parent}, ExportError, "exists"),
        ({"args": (torch.randn(2, 3, 6, 6),), "windows": 3}, OptionError, "windows is an option for a model in files"),
        ({"args": (torch.randn(2, 3, 6, 6),), "metric": accuracy}, OptionError, "metric is for data"),
    ],
)
def test_on_an_error_the_module_is_as_it_was(options: Any, error: type[Exception], message: str) -> None:
    module = net()
    state, layers = copy.deepcopy(module.state_dict()), [repr(layer) for layer in module.modules()]
    parameters = [id(parameter) for parameter in module.parameters()]
    with pytest.raises(error, match=message):
        gp.prune(module, ratio=0.5, **options)
    assert [repr(layer) for layer in module.modules()] == layers and module.training
    assert [id(parameter) for parameter in module.parameters()] == parameters
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


class Whole(nn.Module):
    """A part that can be captured, and a decision by its values."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits if float(logits.detach().sum()) != 0 else logits.sum()


def test_a_part_is_pruned_with_the_gradients_of_the_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = gp.prune(Whole(), data=batches(), loss=loss, ratio=0.5)
    assert list(result.programs) == ["net"] and result.module.net.stem.out_channels == 4
    assert result.plans["net"].made_by["score"] == "k-obs"
    assert "pruned in parts, each by the requested share: net" in result.report.notes
    result.save(tmp_path / "out")
    new, x = gp.load(tmp_path / "out", into=Whole()).eval(), torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(new(x), result.module.eval()(x), rtol=0, atol=0)


def test_a_save_that_fails_restores_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise ExportError("the disk is full")

    monkeypatch.setattr("graphprune.workflows.result.write", full)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    parameters = [id(parameter) for parameter in module.parameters()]
    with pytest.raises(ExportError, match="the disk is full"):
        gp.prune(module, (torch.randn(2, 8),), ratio=0.5, output=tmp_path / "out")
    assert [id(parameter) for parameter in module.parameters()] == parameters
    assert "out_features=16" in repr(module[0]) and not (tmp_path / "out").exists()
