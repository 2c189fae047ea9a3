"""Models that a function of the user's makes."""

from pathlib import Path

import pytest
import torch

from graphprune.errors import GraphpruneError, LoadError
from graphprune.frontends.loading import load

CODE = """
import torch
from torch import nn

number = 3

def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(2, 4),), {}

def only_module():
    return nn.Linear(4, 4)

def two():
    return nn.Linear(4, 4), (torch.randn(2, 4),)

def failing():
    raise ValueError("no data here")
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_models.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_function_makes_the_model() -> None:
    program = load("users_models:model")
    assert program.count() == 4 * 8 + 8 + 8 * 2 + 2
    assert program.module()(torch.randn(5, 4)).shape == (5, 2)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "no_such_module:model",
            r"cannot find no_such_module:model \(reason: No module named 'no_such_module'\); expected",
        ),
        ("users_models:nothing", r"cannot find users_models:nothing \(reason: .*\); expected package\.module:name"),
        ("users_models:number", r"users_models:number is a int, expected a callable"),
        ("users_models:only_module", r"returned a Linear, expected \(nn\.Module, tuple of arguments, dict"),
        ("users_models:two", r"returned \(Linear, tuple\), expected"),
        ("users_models:failing", r"failed with ValueError when called without arguments \(reason: no data here\)"),
    ],
)
def test_what_is_no_such_function(text: str, match: str) -> None:
    with pytest.raises(LoadError, match=match):
        load(text)


def test_a_module_that_fails_while_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "users_unready_models.py").write_text("raise RuntimeError('not today')")
    with pytest.raises(
        GraphpruneError, match=r"^users_unready_models cannot be imported \(reason: not today\): correct"
    ):
        load("users_unready_models:model")
