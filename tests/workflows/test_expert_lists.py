"""Files that name the experts to remove in each layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import LoadError, PlanError
from tests.passes.calibration.test_experts import Mixture


class Net(nn.Module):
    """A mixture of experts between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), Mixture(masked=False)])

    def forward(self, x: Tensor) -> Any:
        return self.layers[1](self.layers[0](x))


@pytest.fixture(scope="module")
def program() -> gp.Program:
    torch.manual_seed(0)
    return gp.trace(Net(), (torch.randn(7, 6),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def written(folder: Path, text: str) -> Path:
    path = folder / "experts.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("key", ["1", "layers.1:experts", "layers.1.router"])
def test_a_file_names_experts_by_layer(program: gp.Program, tmp_path: Path, key: str) -> None:
    plan = gp.plan(program, drop_experts=written(tmp_path, f'{{"{key}": [0, 2]}}'))
    assert plan.groups == {"layers.1.router.weight:0": ((1, 3),)}
    assert gp.verify(program, gp.apply(program, plan), plan).max_error <= 1e-4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"1": [0, 1, 2]}', "has 4 experts and can retain 2, 3 or 4, not 1"),
        ('{"1": [4]}', "has the experts 0 to 3, and no 4"),
        ('{"1": [0, 0]}', "has the index 0 twice"),
        ('{"0": [1]}', r"drop '\*\.0\.\*:experts'"),
    ],
)
def test_experts_that_cannot_be_dropped_are_refused(program: gp.Program, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        gp.plan(program, drop_experts=written(tmp_path, text))


@pytest.mark.parametrize("text", ["[1]", "{}", '{"1": 3}', '{"1": [true]}', '{"1": [1], "1": [2]}', "experts"])
def test_other_files_are_refused(program: gp.Program, tmp_path: Path, text: str) -> None:
    with pytest.raises(LoadError, match="is no list of experts by layer.*must be a JSON object such as"):
        gp.plan(program, drop_experts=written(tmp_path, text))
    with pytest.raises(LoadError, match="experts"):
        gp.plan(program, drop_experts=tmp_path / "none.json")
