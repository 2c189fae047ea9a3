"""A capture that does not compute what its module does is refused, with the first operator that differs."""

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import TraceError
from graphprune.frontends import lowering
from graphprune.frontends.generated_weights import GeneratedWeight, TooLargeError, generated
from graphprune.frontends.skeletons import skeleton
from graphprune.frontends.trace_check import CapturedModule, check

X = torch.randn(2, 5, 6)
aten = torch.ops.aten


class Net(nn.Module):
    """Two linear layers, and a function between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.between(self.first(x)))
        return y


def exporting(module: Tensor) -> Tensor:
    return module * 2 if torch.compiler.is_exporting() else module


def seeing_numbers(x: Tensor) -> Tensor:
    return x * (2 if not isinstance(x, torch._subclasses.FakeTensor) and float(x.abs().max()) > 5 else 1)


@pytest.mark.parametrize("between", [exporting, seeing_numbers])
def test_other_code_under_torch_export_is_refused(between: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(TraceError, match=r"capture of Net does not compute what the module does .*first operator"):
        gp.trace(Net(between), (X * 20,))


def test_the_first_operator_that_differs_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[Any, Any] = {
        **lowering.LOWERINGS,
        aten.relu.default: lambda node: (aten.sigmoid.default, node.args, {}),
    }
    monkeypatch.setattr(lowering, "LOWERINGS", wrong)
    with pytest.raises(TraceError, match=r"differs is relu = aten\.sigmoid\.default \(.*test_trace_check\.py.*between"):
        gp.trace(Net(), (X,))
    program = gp.trace(Net(), (X,), check=False)
    assert program.unchecked == ("the caller asked for no comparison",)


def test_a_difference_that_only_other_sizes_show_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_rows(node: torch.fx.Node) -> Any:
        return aten.slice.Tensor, (node.args[0], 0, 0, 2), {}

    monkeypatch.setattr(lowering, "LOWERINGS", {**lowering.LOWERINGS, aten.relu.default: two_rows})
    with pytest.raises(TraceError, match="does not compute what the module does"):
        gp.trace(Net(lambda y: y.abs().relu()), (X,))


def test_noise_in_the_weights_of_a_capture_is_refused() -> None:
    """A relative difference of 1e-4 is far beyond rounding, although it changes the outputs by little."""
    module = Net(torch.tanh).eval()
    program = gp.trace(module, (X,))
    noisy = {name: weight * (1 + 1e-4 * torch.randn_like(weight)) for name, weight in program.weights.items()}
    with pytest.raises(TraceError, match="does not compute what the module does"):
        check(replace(program, weights=noisy), CapturedModule.of(module))


def test_a_module_that_is_not_repeatable_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def noisy(x: Tensor) -> Tensor:
        count[0] += 1
        return x * count[0]

    count = [0]
    with caplog.at_level(logging.WARNING):
        program = gp.trace(Net(noisy), (X,))
    assert program.unchecked == ("it returns other numbers at every call",)
    assert "it returns other numbers at every call" in caplog.text and "every call" in repr(program)


def test_random_numbers_of_the_caller_are_untouched() -> None:
    module = Net(lambda x: x * torch.rand_like(x) if random.random() < 2 else x)
    drawn, state = random.getstate(), torch.get_rng_state()
    assert gp.trace(module, (X,)).unchecked == ()
    assert random.getstate() == drawn and torch.equal(torch.get_rng_state(), state)


def test_weights_without_memory_are_compared_by_generated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    module = skeleton(Net, torch.float32)
    assert gp.trace(module, (X,)).unchecked == ()
    wrong: dict[Any, Any] = {
        **lowering.LOWERINGS,
        aten.relu.default: lambda node: (aten.sigmoid.default, node.args, {}),
    }
    monkeypatch.setattr(lowering, "LOWERINGS", wrong)
    with pytest.raises(TraceError, match="aten.sigmoid"):
        gp.trace(module, (X,))


def test_generated_weights_multiply_by_their_factors() -> None:
    with torch.device("meta"):
        layer, table = nn.Linear(40, 30), nn.Embedding(20, 8)
    weight = generated(layer)["weight"]
    assert isinstance(weight, GeneratedWeight) and weight.dense().shape == (30, 40)
    assert not torch.allclose(weight.dense()[:30, :30], weight.dense()[:30, :30].T)
    x, ids = torch.randn(3, 40), torch.tensor([[1, 2], [5, 1]])
    torch.testing.assert_close(nn.functional.linear(x, weight), x @ weight.dense().T)
    torch.testing.assert_close(weight * 2, weight.dense() * 2)
    rows = generated(table)["weight"]
    assert isinstance(rows, GeneratedWeight)
    torch.testing.assert_close(nn.functional.embedding(ids, rows), rows.dense()[ids])
    huge = GeneratedWeight(torch.randn(1 << 14, 1), torch.randn(1 << 14, 1), torch.float32)
    with pytest.raises(TooLargeError):
        huge.relu()


class Strided(nn.Module):
    """Reads the memory of a value whose layout a copy has changed."""

    def __init__(self, layout: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.layout = nn.Linear(6, 8), layout

    def forward(self, x: Tensor) -> Any:
        y = self.layout(self.first(x).transpose(1, 2))
        return y.as_strided((2, 10), (40, 3)), y


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda y: y.contiguous(),
    "clone": lambda y: y.clone(memory_format=torch.contiguous_format),
    "to": lambda y: y.to(y.dtype, copy=True, memory_format=torch.contiguous_format),
    "to another type": lambda y: y.to(torch.float64, memory_format=torch.contiguous_format),
    "elementwise": lambda y: (y.contiguous() + 1).relu(),
    "images": lambda y: y[:, :, None].contiguous(memory_format=torch.channels_last)[:, :, 0],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_strides_that_are_seen_are_those_of_the_module(name: str) -> None:
    module = Strided(LAYOUTS[name])
    program = gp.trace(module, (X,))
    expected, got = module(X), program.module()(X)
    torch.testing.assert_close(got, expected)
    assert [y.stride() for y in got] == [y.stride() for y in expected]


def test_layouts_that_nothing_sees_leave_no_operator() -> None:
    module = Net(lambda y: y.transpose(0, 1).contiguous().transpose(0, 1))
    assert aten.clone.default not in {node.target for node in gp.trace(module, (X,)).graph.nodes}


def test_a_program_that_was_not_compared_can_be_replaced() -> None:
    program = gp.trace(Net(), (X,), check=False)
    assert replace(program, unchecked=()).unchecked == ()


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, x: Tensor, padding: Tensor) -> Any:
        return self.encoder(x, src_key_padding_mask=padding)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fast_path_that_exports_do_not_take_is_named() -> None:
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    program = gp.trace(Padded().eval(), (torch.randn(2, 5, 8), padding))
    assert program.unchecked == (
        "padded positions, where torch's fast path of attention returns zeros, and captures do not",
    )


def test_a_sparse_input_is_refused() -> None:
    with pytest.raises(TraceError, match=r"^input 0 has the layout sparse_coo, expected a dense tensor"):
        gp.trace(Net(), (X.to_sparse(),))
