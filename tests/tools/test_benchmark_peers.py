"""The comparison with Torch-Pruning gives both the same networks and budgets, and is resumed where it stopped."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

from tools import benchmark_peers
from tools.benchmark_peers import Harness, differs, runs
from tools.peer_benchmark import networks, ours
from tools.peer_benchmark import torch_pruning_methods as theirs
from tools.peer_benchmark.record import CUT, DENSE, ITERATIVE, TRAINED, WAYS, Record, Run, append, read
from tools.peer_benchmark.table import lines_of
from tools.peer_benchmark.training import Loader, Training, augmented
from tools.recipe_benchmark.resnet import ResNet

SMALL = (256, 100)


def options(**changes: object) -> argparse.Namespace:
    common = {"networks": ["resnet20"], "ways": WAYS, "shares": [0.5], "seeds": [0, 1], "epochs": 2, "images": [9, 9]}
    return argparse.Namespace(**common | {"methods": ["graphprune", "BNScale, all layers"]} | changes)


def record(method: str, way: str = CUT, seed: int = 0, **result: object) -> Record:
    return Record(Run("net", way, method, 0.0 if way == DENSE else 0.5, seed, 0, SMALL), **result)  # type: ignore[arg-type]


def test_a_shortcut_of_a_convolution_computes_what_padding_does() -> None:
    torch.manual_seed(0)
    model, x = ResNet(), torch.randn(2, 3, 32, 32)
    before = model.eval()(x)
    for stage in (model.layer2, model.layer3):
        stage[0] = networks.ConvolvedShortcut(stage[0])  # type: ignore[arg-type]
    torch.testing.assert_close(model(x), before)
    assert networks.macs(model) == 40_551_040 + 16 * 32 * 16**2 + 32 * 64 * 8**2


def test_a_mobilenet_narrows_with_its_width() -> None:
    models = [networks.MobileNetV2(width).eval() for width in (0.25, 0.5)]
    assert models[0](torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    small, large = map(networks.macs, models)
    assert small < large < 4 * small


def test_runs_without_training_come_first_and_only_what_differs_is_run() -> None:
    order = list(runs(options()))
    assert [run.way for run in order] == [DENSE] + [CUT] * 3 + [TRAINED] * 4 + [ITERATIVE] * 4
    assert [run.method for run in order if run.way == CUT].count("BNScale, all layers") == 1
    assert {run.epochs for run in order if run.way != CUT} == {0, 2}
    healed = Run("net", CUT, ours.NAMES[1], 0.5, 0, 0, SMALL)
    assert not differs(healed, True)


def test_images_are_shifted_and_mirrored_only() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 3, 8, 8)
    moved = augmented(x)
    shares = moved.mean((1, 2, 3))
    assert moved.shape == x.shape and {*moved.flatten().tolist()} == {0.0, 1.0}
    assert shares.min() >= 0.25 and shares.max() == 1
    assert len(list(Loader((x, torch.zeros(64)), size=16))) == 4


def test_the_training_lowers_its_loss_and_hands_over_gradients_and_epochs() -> None:
    torch.manual_seed(0)
    x, seen = torch.randn(256, 3, 8, 8), list[int]()
    classes = (x.mean((1, 2, 3)) > 0).long()
    model = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(3, 2))

    def note(epoch: int, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        seen.append(epoch)
        return optimizer

    def distance() -> float:
        return float(torch.nn.functional.cross_entropy(model(x), classes).detach())

    before = distance()
    Training((x, classes), 3, on_gradients=lambda: seen.append(-1), on_epoch=note).run(model)
    assert distance() < before and seen == [-1, -1, 0, -1, -1, 1, -1, -1, 2]


def test_records_are_kept_and_what_failed_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "peers.jsonl"
    known = record("a", accuracy=0.5, untrained=None)
    append(file, known)
    with file.open("a") as out:
        out.write('{"run": {"netw')
    assert list(read(file)) == [known]
    data = networks.Images(
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)), (torch.zeros(0), torch.zeros(0))
    )
    broken = Harness({"net": lambda: torch.nn.Identity()}, data, 1)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert "torch_pruning" in broken.record(Run("net", CUT, "BNScale, all layers", 0.5, 0, 0, SMALL)).fault


def test_a_method_that_removes_too_little_has_no_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "cut", lambda model, share, calls: model)
    network, data = small()
    whole = Harness({"net": lambda: network}, networks.Images(data, data), 1)
    found = whole.record(Run("net", CUT, "graphprune", 0.5, 0, 0, SMALL))
    assert found.fault == "0% removed at most" and "| 0% removed at most |" in "".join(lines_of([found]))


def small() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A network of three convolutions, and images whose class is their brightest channel."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 3, 4), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, 2)]
    pooled = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 3)]
    x = torch.randn(256, 3, 32, 32)
    return torch.nn.Sequential(*layers, *pooled).eval(), (x, x.mean((2, 3)).argmax(1))


def test_ours_reaches_its_share_at_once_and_in_rounds_of_a_training() -> None:
    model, data = small()
    calls, whole = [(data[0][:64], data[1][:64])], networks.macs(model)
    at_once = ours.cut(model, 0.5, calls)
    in_rounds = ours.in_training(model, 0.5, calls, 2, Training(data, 2))
    for one in (at_once, in_rounds):
        assert 1 - networks.macs(one) / whole == pytest.approx(0.5, abs=0.06)
    assert not in_rounds.training


@pytest.mark.parametrize("method", ["GroupNorm, all layers", "GrowingReg, each layer", "Taylor, each layer"])
def test_theirs_reach_their_share_in_rounds_of_a_training(method: str) -> None:
    pytest.importorskip("torch_pruning")
    model, data = small()
    whole = networks.macs(model)
    peer = theirs.Cutter(method, [(data[0][:64], data[1][:64])], whole)
    assert 1 - networks.macs(peer.in_training(model, 0.5, 2, Training(data, 2))) / whole > 0.49


def test_the_table_shows_the_best_of_each_column_and_faults() -> None:
    several = [record("a", seed=seed, accuracy=0.6 + 0.1 * seed) for seed in (0, 1)]
    lines = list(lines_of([record("dense", DENSE, accuracy=0.9), *several, record("b", fault="IndexError: 32")]))
    assert lines[0] == "| way | method | net (90.0%), -50% |"
    assert lines[2:] == [f"| {CUT} | a | **65.0** (60.0 to 70.0) |", f"| {CUT} | b | IndexError: 32 |"]


def test_without_the_other_package_ours_run_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    arguments = ["--weights", "w", "--train", "t", "--test", "t", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmark_peers", *arguments])
    assert benchmark_peers.arguments().methods == [*ours.NAMES]
    assert "pip install --target OTHER --no-deps torch-pruning==1.6.1" in capsys.readouterr().err
