"""What is lowered in place is what another trace would give."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram

from graphprune.frontends import lowering, modules

aten = torch.ops.aten


class Convenient(nn.Module):
    """Uses every operator that is lowered."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        first, second = self.linear(x).mT.mT.unflatten(-1, (2, -1)).flatten(2).narrow(2, 0, 8).chunk(2, -1)
        y = torch.dropout(first.contiguous() * second.detach(), 0.5, False).to(torch.float64).to(x)
        y = y * torch.tensor([2.0])
        return y.transpose(1, 2).flatten(1).view(x.shape[0], 4, -1).reshape(x.shape[0], -1).to("cpu")


class InPlace(nn.Module):
    """Cannot be lowered without another trace."""

    def forward(self, x: Tensor) -> Any:
        y = x + 1
        y[:, 0] = 0
        return y.mul_(2)


class Expanding(nn.Module):
    """Flattens two dynamic dimensions, which no reshape without symbols says."""

    def forward(self, x: Tensor) -> Any:
        return x.flatten(2).expand_as(x.flatten(2))


@pytest.mark.parametrize("module", [Convenient(), InPlace(), Expanding()])
def test_the_numbers_stay(module: nn.Module) -> None:
    program = modules.trace(module.eval(), (torch.randn(2, 5, 8),))
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(program.module()(x), module(x))
    operators = [node.target for node in program.graph.nodes if isinstance(node.target, OpOverload)]
    assert not any(operator._schema.is_mutable for operator in operators)


def test_another_trace_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def run(exported: ExportedProgram, table: dict[Any, Any]) -> ExportedProgram:
        traced.append(exported)
        again: ExportedProgram = original(exported, table)
        return again

    original = ExportedProgram.run_decompositions
    monkeypatch.setattr(ExportedProgram, "run_decompositions", run)
    targets = {node.target for node in modules.trace(Convenient().eval(), (torch.randn(2, 5, 8),)).graph.nodes}
    assert not traced
    assert targets.isdisjoint(set(lowering.LOWERINGS) - {aten.reshape.default})
    modules.trace(InPlace(), (torch.randn(2, 5, 8),))
    assert len(traced) == 1


class Attends(nn.Module):
    """Computes an attention that nobody reads, and draws numbers before those that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        nn.functional.scaled_dot_product_attention(x, x, self.value(x))
        torch.rand(2)
        return x + torch.rand(4)


def test_operators_without_readers_remain_only_if_they_draw_numbers() -> None:
    x = torch.randn(2, 3, 4)
    program = modules.trace(Attends().eval(), (x,))
    names = [node.target.__name__ for node in program.graph.nodes if node.op == "call_function"]
    assert names == ["rand.default", "rand.default", "add.Tensor"]
