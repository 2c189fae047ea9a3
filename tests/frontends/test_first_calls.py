"""Modules that make their weights in their first call."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import TraceError


class BuiltByItsCall(nn.Module):
    """A layer that makes its weights when it is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.down: Any = nn.Linear(6, 2)
        self.up: Any = None

    def forward(self, x: Tensor) -> Any:
        if self.up is None:
            self.up = nn.Linear(x.shape[-1], 6)
        return self.down(self.up(x).relu())


def test_a_module_that_makes_parameters_in_its_first_call_is_refused_until_then() -> None:
    module, x = BuiltByItsCall(), torch.randn(3, 4)
    with pytest.raises(TraceError, match=r"makes parameters in its first call \(up.weight, up.bias\).*call the module"):
        gp.trace(module, (x,))
    assert module.up is None
    expected = module(x)
    assert torch.equal(gp.trace(module, (x,)).module()(x), expected)
