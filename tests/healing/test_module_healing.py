"""Modules are trained in place on batches of any form, and are as before after an error."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import graphprune as gp
from graphprune.errors import CalibrationError, OptionError, WorkspaceError
from graphprune.healing import training_state


class Net(nn.Module):
    """Small residual network with batch norms and dropout."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.inner, self.drop, self.head = nn.Conv2d(width, width, 3, padding=1), nn.Dropout(0.1), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.inner(x).relu()
        return self.head(self.drop(x.mean((2, 3))))  # type: ignore[no-any-return]


def loss(output: Tensor, batch: Any) -> Tensor:
    return cross_entropy(output, batch[1])


@pytest.fixture
def loader() -> DataLoader[Any]:
    """Images whose class is the quarter with the brightest pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (64,), generator=generator)
    images = torch.randn(64, 1, 6, 6, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 3 * (label // 2) : 3 * (label // 2) + 3, 3 * (label % 2) : 3 * (label % 2) + 3] += 2
    return DataLoader(TensorDataset(images, labels), batch_size=16)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_labels_of_the_user(net: Net, loader: DataLoader[Any]) -> None:
    net.train()
    net.norm.eval()
    net.stem.weight.requires_grad_(False)
    stem = net.stem.weight.clone()
    healing = gp.heal(net, data=loader, loss=loss, validation=loader, epochs=10, rate=0.02)
    before, after = healing.held_out
    assert before is not None and after is not None and after < 0.85 * before
    assert (healing.steps, healing.tokens, healing.unit, healing.aim) == (40, 640, "samples", "labels")
    assert net.training and not net.norm.training, "the modes are those before"
    assert torch.equal(net.stem.weight, stem) and not net.stem.weight.requires_grad


@pytest.mark.parametrize("train", ["all", "lora", "norms"])
def test_a_teacher_of_the_user(net: Net, loader: DataLoader[Any], train: str) -> None:
    teacher = copy.deepcopy(net).train()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    names = net.state_dict().keys()
    healing = gp.heal(
        net, teacher=teacher, data=loader, validation=loader, epochs=10, rate=0.01, train=train, aim="outputs", rank=2
    )
    before, after = healing.held_out
    assert before is not None and after is not None and after < 0.8 * before
    assert net.state_dict().keys() == names and all(weight.requires_grad for weight in net.parameters())
    assert teacher.training and all(weight.requires_grad for weight in teacher.parameters())


def test_batches_of_other_forms(net: Net, loader: DataLoader[Any]) -> None:
    batches = [{"image": images, "label": labels} for images, labels in loader]
    healing = gp.heal(
        net, data=batches, forward=lambda model, batch: model(batch["image"]), accumulate=2,
        loss=lambda output, batch: cross_entropy(output, batch["label"]),
    )  # fmt: skip
    assert (healing.steps, healing.tokens, healing.held_out) == (2, 64, (None, None))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, OptionError, r"batches need a loss or a teacher: loss=lambda output, batch: .*output.loss for a model"),
        ({"teacher": 3}, OptionError, "teacher is an int, expected a module, a folder or a name of the hub"),
        ({"teacher": Net(), "aim": "hidden"}, OptionError, "forward that takes output_hidden_states, .*that of Net"),
        ({"loss": loss, "output": "out"}, OptionError, "output needs a folder as the pruned model"),
        ({"loss": lambda output, batch: output}, CalibrationError, "expected a tensor with one number"),
        ({"loss": lambda output, batch: output.sum() * float("nan")}, CalibrationError, "nan"),
        ({"loss": loss, "rate": 1e30}, CalibrationError, "nan|inf"),
        ({"teacher": nn.Linear(36, 4), "aim": "logits"}, CalibrationError, "Linear does not run on the batch"),
        (
            {"loss": loss, "validation": [(torch.ones(2, 3), torch.ones(2))]},
            CalibrationError,
            "Net does not run on the ",
        ),
    ],
)
def test_bad_input(net: Net, loader: DataLoader[Any], options: dict[str, Any], error: type, match: str) -> None:
    before = state_of(net)
    with pytest.raises(error, match=match):
        gp.heal(net, data=loader, epochs=2, **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters()) and net.training


class Killed(BaseException):
    """End of a process."""


def test_a_killed_training_of_a_module_ends_with_the_same_bits(
    net: Net, loader: DataLoader[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(images: list[Any]) -> Any:
        x, y = zip(*images, strict=True)
        return torch.stack(x) + 0.1 * torch.randn(len(x), 1, 6, 6), torch.stack(y)

    shuffled = DataLoader(loader.dataset, batch_size=16, shuffle=True, collate_fn=noisy)
    options: dict[str, Any] = {"data": shuffled, "loss": loss, "epochs": 3, "evaluations": 6, "rate": 0.01}
    whole, first, second = copy.deepcopy(net), copy.deepcopy(net), copy.deepcopy(net)
    gp.heal(whole, **options)
    torch.randn(5)  # another process is elsewhere in its random numbers
    store, stored = training_state.store, []

    def once(workspace: Any, snapshot: Any) -> None:
        store(workspace, snapshot)
        stored.append(snapshot.progress.step)
        if len(stored) == 3:
            raise Killed

    monkeypatch.setattr("graphprune.healing.trainer.store", once)
    with pytest.raises(Killed):
        gp.heal(first, scratch=tmp_path, **options)
    assert all(torch.equal(a, b) for a, b in zip(state_of(first).values(), state_of(net).values(), strict=True))
    with pytest.raises(WorkspaceError, match="epochs was '3' and is '2'"):
        gp.heal(second, scratch=tmp_path, **options | {"epochs": 2})
    gp.heal(second, scratch=tmp_path, **options)
    assert stored == [2, 4, 6, 8, 10, 12] and not [*tmp_path.iterdir()]
    assert all(torch.equal(a, b) for a, b in zip(state_of(second).values(), state_of(whole).values(), strict=True))


def test_the_teacher_is_another_module(net: Net, loader: DataLoader[Any]) -> None:
    with pytest.raises(OptionError, match="the teacher is the pruned module itself"):
        gp.heal(net, teacher=net, data=loader)
    with pytest.raises(CalibrationError, match="the data has no batch"):
        gp.heal(net, loss=loss, data=iter([]))


def test_a_folder_with_batches(tiny: Any, inputs: Any, tmp_path: Path) -> None:
    tiny("vit").save_pretrained(tmp_path / "small")
    batch = {**inputs("vit"), "labels": torch.tensor([0, 2])}
    healing = gp.heal(
        tmp_path / "small", data=[batch], validation=[batch], epochs=8, rate=0.005, output=tmp_path / "healed",
        loss=lambda output, batch: output.loss,
    )  # fmt: skip
    before, after = healing.held_out
    assert before is not None and after is not None and after < before
    assert {path.name for path in tmp_path.iterdir()} == {"small", "healed"}
    gp.verify_folder(tmp_path / "healed")
