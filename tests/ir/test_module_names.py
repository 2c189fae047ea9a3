"""Names of modules: what can be captured can be saved and loaded, and what cannot is refused before any work."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import TraceError
from graphprune.ir.module_names import is_plain_path, problem

ODD = ("a b", "a_b", "a'b", "a(b)", "a b]", "a;b,", "😀", "0", "{x}", "a%b", "#", "weight")
REFUSED = ("class", "None", 'a"b', "a\\", "a\nb", "a\0b", "a\u2028b", "\ud800", "ﬁ", "__metadata__")


class Named(nn.Module):
    """Has layers and parameters with these names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(4)))

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.layers.items():
            x = torch.relu(layer(x)) * self.get_parameter(name)
        return x


def test_odd_names_are_saved_and_loaded(tmp_path: Path) -> None:
    program = gp.trace(Named(*ODD), (torch.randn(2, 4),))
    gp.save(program, output=tmp_path / "odd")
    loaded = gp.load(tmp_path / "odd")
    assert loaded.shapes() == program.shapes()
    assert {f"layers.{name}.weight" for name in ODD} | set(ODD) <= loaded.parameters


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_names_that_code_cannot_hold(name: str) -> None:
    assert problem(name) and not is_plain_path(f"layers.{name}.weight")
    with pytest.raises(TraceError, match=r"Named has the name .* rename it"):
        gp.trace(Named(name), (torch.randn(2, 4),))
