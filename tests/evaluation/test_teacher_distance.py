"""Distances from a teacher are relative to its outputs, and other shapes are named."""

import pytest
import torch
from torch.nn.functional import kl_div

from graphprune.errors import CalibrationError
from graphprune.evaluation import teacher_distance
from graphprune.evaluation.teacher_distance import divergence, output_distance


def test_the_distance_is_relative_and_ignores_integers() -> None:
    x, ids = torch.randn(3, 4), torch.arange(3)
    assert torch.allclose(output_distance({"a": x + 0.1 * x, "b": ids + 1}, {"a": x, "b": ids}), torch.tensor(0.01))
    zero = torch.zeros(2, 3)
    assert float(output_distance(zero, zero)) == 0


def test_the_divergence_is_the_mean_over_rows() -> None:
    both = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    expected = (0.5 * (0.5 / both.exp()[1]).log()).sum() / 2
    assert torch.allclose(divergence(both[[1, 1]], both), expected)


def test_the_divergence_and_its_gradient_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_distance, "ROWS", 3)  # several parts, the last one smaller
    torch.manual_seed(0)
    scores, reference = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.randn(7, 5).double()
    expected = kl_div(scores.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True)
    found = divergence(scores, reference)
    assert torch.allclose(found, expected)
    new, old = (torch.autograd.grad(3 * value, scores)[0] for value in (found, expected))
    assert torch.allclose(new, old)
    with torch.no_grad():
        assert torch.allclose(divergence(scores, reference), expected)


def test_other_shapes_are_named() -> None:
    with pytest.raises(CalibrationError, match=r"outputs of shapes \[\(2, 5\)\], the teacher \[\(2, 4\)\]"):
        output_distance(torch.zeros(2, 5), torch.zeros(2, 4))
    with pytest.raises(CalibrationError, match=r"logits of shape \(2, 5\), the teacher \(2, 4\)"):
        divergence(torch.zeros(2, 5), torch.zeros(2, 4))
