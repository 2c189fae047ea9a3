"""Tests share captures of stock modules of one structure, and of no other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.frontends import modules
from tests.capture_cache import CaptureCache

Tiny = Callable[..., nn.Module]
Counted = list[nn.Module]


class Own(nn.Module):
    """A module whose code no name decides."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice the input."""
        return 2 * x


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """The modules that were captured, by a new cache."""
    exported: Counted = []
    export = modules.export.export  # type: ignore[attr-defined]

    def count(module: nn.Module, *rest: Any) -> Any:
        exported.append(module)
        return export(module, *rest)

    monkeypatch.setattr(modules, "export", CaptureCache(count))
    return exported


def test_one_capture_serves_modules_of_one_structure(tiny: Tiny, captured: Counted) -> None:
    first, second = tiny("resnet-basic"), tiny("resnet-basic")
    for tensor in (*second.parameters(), *second.buffers()):
        tensor.data = (tensor.data * 1.5).to(tensor.dtype)
    x = torch.randn(2, 3, 32, 32)
    one, two = (gp.trace(model, (x,)) for model in (first, second))  # each compared with its module
    assert captured == [first] and str(one) == str(two) and one.graph is not two.graph
    for program, model in ((one, first), (two, second)):
        stored = dict([*model.named_parameters(), *model.named_buffers()])
        assert all(torch.equal(program.weights[name], stored[name]) for name in program.shapes())
        assert torch.equal(program.module()(x).logits, model(x).logits)


def test_other_structures_and_calls_are_captured_anew(captured: Counted) -> None:
    def layer(width: int = 4, stride: int = 1) -> nn.Module:
        return nn.Conv1d(2, width, 3, stride=stride).eval()

    x = torch.randn(2, 2, 8)
    other: list[tuple[nn.Module, Tensor]] = [
        (layer(5), x), (layer(stride=2), x), (layer().double(), x.double()), (layer(), x[:, :, :6]),
        (layer().requires_grad_(False), x), (Own(), x), (Own(), x),
    ]  # fmt: skip
    hooked = layer()
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    for module, example in [(layer(), x), *other, (hooked, x)]:
        gp.trace(module, (example,))
    assert len(captured) == len(other) + 2
    gp.trace(layer(), (torch.randn(2, 2, 8),))
    assert len(captured) == len(other) + 2
