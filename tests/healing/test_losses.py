"""Losses: drawn classes estimate the divergence without bias, and shapes that differ are named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphprune.errors import CalibrationError
from graphprune.healing.data.examples import Batch
from graphprune.healing.losses import HealingLoss, estimated_divergence, hidden_distance
from graphprune.healing.teacher import Teacher, TeacherPredictions

CLASSES, ROWS = 40, 6


class Tables:
    """Examples whose output is the model's table, whatever the batch."""

    unit = "rows"

    def output(self, model: nn.Module, batch: Batch, **options: Any) -> Tensor:
        return model.weight  # type: ignore[return-value]


def table(seed: int) -> nn.Embedding:
    torch.manual_seed(seed)
    return nn.Embedding(ROWS, CLASSES)


def test_drawn_classes_estimate_the_divergence_and_its_gradient(tmp_path: Path) -> None:
    dense, small = table(0), table(1).weight
    batch = Batch({}, None, ROWS, ("0",))
    examples: Any = Tables()
    exact = estimated_divergence(small, Teacher(dense, examples).reference(batch))
    (gradient,) = torch.autograd.grad(exact, small)
    values, gradients = [], []
    for seed in range(300):
        reference = Teacher(dense, examples, 8, tmp_path / str(seed), seed).reference(batch)
        assert reference.drawn is not None and reference.drawn.shape == (ROWS, 8)
        values.append(estimated_divergence(small, reference))
        gradients.append(torch.autograd.grad(values[-1], small)[0])
    mean, error = torch.stack(values).mean(), torch.stack(values).std() / 300**0.5
    assert abs(mean - exact) < 4 * error < 0.2 * exact
    assert torch.allclose(torch.stack(gradients).mean(0), gradient, atol=0.01)
    assert estimated_divergence(dense.weight, Teacher(dense, examples, 8, tmp_path / "0").reference(batch)).abs() < 1e-6


def test_the_teacher_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples: Any = Tables()
    teacher = Teacher(table(0), examples, 8, tmp_path)
    batch = Batch({}, None, 2 * ROWS, ("0", "1"))
    monkeypatch.setattr(Tables, "output", lambda self, model, batch, **_: torch.cat([model.weight, model.weight]))
    first = teacher.reference(batch)
    monkeypatch.setattr(Tables, "output", lambda *_: pytest.fail("the teacher ran again"))
    second = teacher.reference(batch)
    assert first.drawn is not None and second.drawn is not None and torch.equal(first.drawn, second.drawn)
    assert second.drawn.dtype == torch.long and not torch.equal(*second.drawn.chunk(2))
    (tmp_path / "1.safetensors").write_bytes(b"half")  # of a process that was killed
    monkeypatch.setattr(Tables, "output", lambda self, model, batch, **_: torch.cat([model.weight, model.weight]))
    third = teacher.reference(batch)
    assert third.drawn is not None and torch.equal(third.drawn, first.drawn)


def test_few_classes_are_stored_whole(tmp_path: Path) -> None:
    examples: Any = Tables()
    reference = Teacher(table(0), examples, CLASSES, tmp_path).reference(Batch({}, None, ROWS, ("0",)))
    assert reference.whole is not None and torch.allclose(reference.whole, table(0).weight.log_softmax(1))


def test_labels_that_are_ignored_do_not_count() -> None:
    scores = torch.randn(1, 3, CLASSES)
    labels = torch.tensor([[4, -100, 7]])
    expected = -(scores[0].log_softmax(1)[[0, 2], [4, 7]]).mean()
    assert torch.allclose(HealingLoss("labels")(scores, Batch({}, labels, 3), None), expected)


def test_distances_of_hidden_states_are_relative() -> None:
    x = torch.randn(3, 4)
    states = SimpleNamespace(hidden_states=(x[None], 2 * x[None]))
    moved = SimpleNamespace(hidden_states=(x[None], 3 * x[None]))
    assert torch.allclose(hidden_distance(moved, states), torch.tensor(0.125))


def test_other_shapes_are_named() -> None:
    with pytest.raises(CalibrationError, match=r"logits of shape \(2, 5\), the teacher \(2, 4\)"):
        estimated_divergence(torch.zeros(2, 5), TeacherPredictions(torch.zeros(2, 4)))
    wide, narrow = (SimpleNamespace(hidden_states=(torch.zeros(1, 2, n),)) for n in (8, 6))
    with pytest.raises(CalibrationError, match=r"the model has 1 of widths \[6\], the teacher 1 of widths \[8\]"):
        hidden_distance(narrow, wide)
    with pytest.raises(CalibrationError, match="expected a tensor with one number"):
        HealingLoss("labels", lambda output, batch: output)(torch.zeros(2, 5), Batch({}, None, 2), None)
