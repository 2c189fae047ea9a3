"""Windows of texts, of text that a model generates itself, and of mixtures of both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import softmax

from graphprune.errors import CalibrationError, LoadError
from graphprune.huggingface import model_folder
from graphprune.ir.program import Source
from graphprune.statistics import generated_text
from graphprune.statistics.calibration_windows import calibration_windows
from graphprune.statistics.data_files import text_names


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def drawn(folder: Path, text: Any, samples: int = 6, seed: int = 0) -> torch.Tensor:
    """Windows of five tokens."""
    return calibration_windows(Source(folder, "huggingface"), str(text), samples, 5, seed)


def test_the_model_generates_its_own_text_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = drawn(folder, "dense"), drawn(folder, "dense", seed=1)
    assert first.shape == (6, 5) and not torch.equal(first, other)
    monkeypatch.setattr(generated_text, "_generate", None)  # what is in the cache is not generated again
    assert torch.equal(drawn(folder, "dense"), first)


def test_tokens_follow_the_distribution_of_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, start = model_folder.module(folder), torch.tensor([[4]])
    monkeypatch.setattr(generated_text, "_starts", lambda tokenizer, first, rows: start.expand(rows, 1))
    ids = calibration_windows(Source(folder, "huggingface"), "dense", 2000, 1, 0)
    shares = torch.bincount(ids[:, 0], minlength=model.config.vocab_size) / len(ids)
    with torch.no_grad():
        expected = softmax(model(start).logits[0, -1], -1)
    assert (shares - expected).abs().max() < 4 * (0.25 / len(ids)) ** 0.5  # four standard errors, at most


def test_random_numbers_of_the_user_stay(folder: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    drawn(folder, "dense")
    assert torch.equal(torch.rand(3), expected)


def test_mixture(folder: Path, text: Path) -> None:
    ids, own, words = drawn(folder, f"dense + {text}", 7), drawn(folder, "dense", 4), drawn(folder, text, 3)
    rows = {tuple(row) for row in ids.tolist()}
    assert rows == {tuple(row) for row in (*own.tolist(), *words.tolist())} and len(ids) == 7


def test_a_file_of_that_name_comes_first(folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text.parent)
    Path("dense").write_bytes(text.read_bytes())
    Path("dense + more").write_bytes(text.read_bytes())
    assert torch.equal(drawn(folder, "dense"), drawn(folder, text))
    assert text_names("dense + more") == ["dense + more"] and text_names("a + b") == ["a", "b"]


def test_refusals(folder: Path, text: Path, tiny: Callable[..., nn.Module], tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"the text nowhere\.txt does not exist"):
        drawn(folder, f"{text} + nowhere.txt")
    with pytest.raises(CalibrationError, match="got 1 windows of 2 texts; request at least one of each"):
        drawn(folder, f"{text} + dense", 1)
    encoder: Any = tiny("bert")
    encoder.save_pretrained(tmp_path / "bert")
    with pytest.raises(CalibrationError, match=r"does not generate text; name a text file as calibration text"):
        drawn(tmp_path / "bert", "dense")
    with pytest.raises(CalibrationError, match=r"net\.onnx is no model folder of transformers, which could"):
        drawn(tmp_path / "net.onnx", "dense")
