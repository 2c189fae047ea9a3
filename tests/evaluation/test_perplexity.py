"""Perplexity and speed, against what follows from the definitions."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from graphprune.errors import CalibrationError
from graphprune.evaluation.perplexity import classify, evaluate, perplexity, tokens_per_second
from graphprune.frontends.modules import trace

VOCABULARY = 50


class Model(nn.Module):
    """The smallest language model: the next token from this one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Any:
        logits: Tensor = self.head(self.embedding(input_ids))
        return logits


def ids(count: int = 5, length: int = 300) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def test_uniform_predictions_have_the_perplexity_of_the_vocabulary() -> None:
    found = perplexity(lambda input_ids: torch.zeros(*input_ids.shape, VOCABULARY), ids(), batch=2)
    assert found.perplexity == pytest.approx(VOCABULARY)
    assert (found.windows, found.length, found.tokens) == (5, 300, 5 * 299)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_mean_over_all_predicted_tokens(batch: int) -> None:
    model, windows = Model(), ids()
    with torch.no_grad():
        expected = cross_entropy(model(windows)[:, :-1].flatten(0, 1), windows[:, 1:].flatten()).item()
    found = perplexity(model, windows, batch=batch)
    assert found.nll == pytest.approx(expected, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-6)


@pytest.mark.parametrize(
    "wrap", [lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x), lambda x: (x, None), lambda x: x]
)
def test_logits_are_found_in_what_models_return(wrap: Any) -> None:
    model = Model()
    found = perplexity(lambda input_ids: wrap(model(input_ids)), ids())
    assert found.nll == pytest.approx(perplexity(model, ids()).nll)


def test_a_program_is_measured_like_its_module() -> None:
    model = Model()
    program = trace(model, kwargs={"input_ids": ids(2, 8)})
    assert perplexity(program, ids()).nll == pytest.approx(perplexity(model, ids()).nll, rel=1e-6)


def test_speed() -> None:
    found = tokens_per_second(Model(), ids(2, 10), repeats=2)
    assert found.tokens == 20
    assert found.tokens_per_second == pytest.approx(20 / found.seconds)


def test_no_finite_numbers() -> None:
    with pytest.raises(CalibrationError, match=r"numbers that are not finite in windows 2 to 3"):
        perplexity(lambda input_ids: torch.full((*input_ids.shape, 50), _nan_after(input_ids)), _numbered(), batch=2)


def _numbered() -> Tensor:
    return torch.arange(4)[:, None].expand(4, 10).contiguous()


def _nan_after(input_ids: Tensor) -> float:
    return math.nan if input_ids.max() >= 2 else 0.0


def test_no_language_model() -> None:
    with pytest.raises(CalibrationError, match=r"returns a Tensor without logits for every token: it is no language"):
        perplexity(lambda input_ids: torch.zeros(len(input_ids), 3), ids())


def test_a_program_from_nowhere_has_no_tokenizer(tmp_path: Path) -> None:
    program = trace(Model(), kwargs={"input_ids": ids(2, 8)})
    with pytest.raises(CalibrationError, match=r"was not loaded from a folder and has no tokenizer"):
        evaluate(program, tmp_path / "text.txt")


def test_a_classifier_is_right_where_its_highest_score_is() -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(5, 3), torch.randn(10, 5)
    labels = module(x).argmax(1)
    labels[[2, 7]] = (labels[[2, 7]] + 1) % 3
    batches: Any = [
        (((part,), {}), truth) for part, truth in zip(torch.split(x, 4), torch.split(labels, 4), strict=True)
    ]
    found = classify(module, batches)
    assert found.right == tuple(i not in (2, 7) for i in range(10)) and found.accuracy == 0.8
    assert classify(trace(module, (x[:2],)), batches).right == found.right


@pytest.mark.parametrize(("output", "message"), [
    (torch.zeros(2, 3, 4), r"without logits of shape \(inputs, classes\): it is no classifier"),
    (torch.zeros(3, 4), r"for 2 labels there are scores \(3, 4\)"),
    (torch.full((2, 4), math.nan), "some are not finite"),
])  # fmt: skip
def test_what_is_no_classification(output: Tensor, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        classify(lambda: output, [(((), {}), torch.zeros(2))])
    with pytest.raises(CalibrationError, match="nothing to classify"):
        classify(lambda: output, [])
