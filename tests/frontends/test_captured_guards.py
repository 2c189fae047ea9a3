"""Inputs for which a capture does not hold are refused wherever the program runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim

import graphprune as gp
from graphprune.errors import InputError
from graphprune.execution import interpreter
from graphprune.exporters.targets import pt2
from graphprune.ir.guards import Guard, UnknownConditionError

FREE = {0: Dim.AUTO, 1: Dim.AUTO}


class Limited(nn.Module):
    """Computes otherwise for long sequences, and takes a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, parts: dict[str, list[Tensor]], times: int = 1) -> Tensor:
        y = self.first(x).relu()
        y = y / 10 if x.shape[1] > 16 else y
        z: Tensor = self.last(y) * times + parts["shift"][0]
        return z


def inputs(batch: int = 2, length: int = 5, shift: int | None = None) -> tuple[Any, ...]:
    return torch.randn(batch, length, 6), {"shift": [torch.randn(batch, shift or length, 3)]}, 2


@pytest.fixture(scope="module")
def program() -> gp.Program:
    return gp.trace(Limited(), inputs(), dynamic_shapes=(FREE, {"shift": [FREE]}, None))


@pytest.fixture(scope="module")
def small(program: gp.Program) -> gp.Program:
    return gp.apply(program, gp.plan(program, ratio=0.5))


REFUSED = {
    "a decision": (inputs(length=20), r"x\.size\(1\) = 20, expected x\.size\(1\) <= 16: beyond it the model may run"),
    "equal sizes": (inputs(shift=6), r"shift.*\.size\(1\) = 6.* expected .*size\(1\) == .*size\(1\)"),
    "a fixed size": ((torch.randn(2, 5, 7), *inputs()[1:]), r"input x has size 7 in dimension 2, expected 6"),
    "dimensions": ((torch.randn(2, 5), *inputs()[1:]), r"input x has 2 dimensions, expected 3"),
    "a constant": ((*inputs()[:2], 3), r"input times is 3, expected 2: .* constant of a capture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_beyond_a_guard_are_refused_before_and_after_a_cut(
    name: str, program: gp.Program, small: gp.Program
) -> None:
    args, message = REFUSED[name]
    for subject in (program, small):
        assert subject.violation(args, {}) is not None and subject.violation(inputs(3, 16), {}) is None
        with pytest.raises(InputError, match=message):
            subject.module()(*args)
        with pytest.raises(InputError, match=message):
            interpreter.run(subject, [(args, {})], (0,))
    assert "holds where x.size(1) <= 16" in repr(small)


def test_accepted_inputs_run(small: gp.Program) -> None:
    args = inputs(3, 16)
    assert small.module()(*args).shape == (3, 16, 3)
    (output,) = interpreter.run(small, [(args, {})], (0,))
    torch.testing.assert_close(small.module()(*args), output)


class Rows(nn.Module):
    """Computes with the rows of a batch one below the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.last(self.first(x.reshape(-1, 6)).relu())
        return rows.view(x.shape[0], -1, 3)


@pytest.mark.parametrize("example", [torch.randn(4, 10, 6)[:, :5], torch.randn(8, 5, 6)[::2]])
def test_a_slice_as_the_example_is_no_condition_on_strides(example: Tensor) -> None:
    net = Rows()
    program = gp.trace(net, (example,))
    assert program.guards == () and torch.equal(program.inputs[0][0], example)
    for x in (torch.randn(3, 5, 6), torch.randn(9, 5, 6)[::3], example):
        assert torch.equal(program.module()(x), net(x))


def test_slices_of_one_text_are_an_example_of_an_encoder_decoder(configure: Any) -> None:
    net: Any = transformers.T5ForConditionalGeneration(configure("t5"))
    net.eval()
    ids = torch.randint(3, 50, (2, 12))
    program = gp.trace(net, kwargs={"input_ids": ids[:, :6], "decoder_input_ids": ids[:, 6:], "use_cache": False})
    inputs = {"input_ids": ids[:, :5].contiguous(), "decoder_input_ids": ids[:1, 2:9].expand(2, 7), "use_cache": False}
    assert torch.allclose(program.module()(**inputs).logits, net(**inputs).logits, atol=1e-6)


def test_a_saved_file_has_the_guards(tmp_path: Path) -> None:
    module = Limited()
    program = gp.trace(module, inputs()[:2], dynamic_shapes=(FREE, {"shift": [FREE]}))
    pt2.save(gp.apply(program, gp.plan(program, ratio=0.5)), file := tmp_path / "small.pt2")
    saved = torch.export.load(file).module()
    assert saved(*inputs(3, 16)[:2]).shape == (3, 16, 3)
    with pytest.raises(Exception, match="16"):
        saved(*inputs(3, 17)[:2])
    with pytest.raises(InputError, match="<= 16"):
        gp.load(file).module()(*inputs(3, 17)[:2])


@pytest.mark.parametrize(
    "code",
    ["__import__('os').getcwd()", "args[0].__class__", "().__class__", "[1][0] == 1", "9 ** 9 ** 9",
     "(" * 30 + "9" + "**8)" * 30, "'a' * 9", "(" * 300, "-" * 5000 + "1", "args[0].size()[0] == open('x')",
     "1" + "+1" * 9000],
)  # fmt: skip
def test_only_arithmetic_with_sizes_is_evaluated(code: str) -> None:
    with pytest.raises((UnknownConditionError, RecursionError)):
        Guard(code, ("x",)).holds([torch.ones(2)])


@pytest.mark.parametrize(
    ("code", "holds"),
    [("args[0].size()[1] % 2 == 0", True), ("max(args[0].size()[0], 7) < 7", False),
     ("2 <= args[0].size()[0] <= 3", True), ("not args[0].stride()[0] == 4 or args[0].size()[1] // 3 > 1", False),
     ("args[0].size()[0] ** 2 == 4.0", True)],
)  # fmt: skip
def test_conditions_have_the_values_of_python(code: str, holds: bool) -> None:
    guard = Guard(code, ("x",))
    assert guard.holds([torch.ones(2, 4)]) is holds
    assert "args" not in guard.text
