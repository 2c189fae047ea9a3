"""A proof fails when the numbers, the shapes or the runs of two programs differ."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import VerificationError
from graphprune.execution import interpreter
from graphprune.execution.cases.fresh_cases import Cases
from graphprune.execution.cut_errors import STORED, compared
from graphprune.execution.equivalence import mask_program, verify_cut, verify_finite
from graphprune.execution.output_comparison import compare
from graphprune.ir.program import Inputs
from graphprune.planning.plan import make


def cut() -> tuple[gp.Program, gp.Program, gp.Plan]:
    torch.manual_seed(0)
    program = gp.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(4, 6),))
    plan = gp.plan(program, ratio=0.5)
    return program, gp.apply(program, plan), plan


def with_weight(program: gp.Program, name: str, tensor: Tensor) -> gp.Program:
    return replace(program, weights={**program.weights, name: tensor})


def test_a_right_cut_is_proven_at_several_batch_sizes() -> None:
    program, small, plan = cut()
    proof = verify_cut(program, small, plan.keep)
    assert proof.sizes == ("input_1 4x6", "input_1 5x6", "input_1 2x6", "input_1 4x6") and proof.cases == 4


def test_a_wrong_number_is_found() -> None:
    program, small, plan = cut()
    wrong = with_weight(small, "0.weight", small.weights["0.weight"] * 1.01)
    with pytest.raises(VerificationError, match=r"masked and cut program: they differ by .* allowed is 1e-04"):
        gp.verify(program, wrong, plan)


def test_the_wrong_channels_are_found() -> None:
    program, small, plan = cut()
    other = [i for i in range(8) if i not in plan.keep["0.weight"][0].tolist()]
    with pytest.raises(VerificationError, match="they differ"):
        gp.verify(program, with_weight(small, "0.weight", program.weights["0.weight"][other]), plan)


def test_a_cut_program_that_does_not_run_is_refused() -> None:
    program, small, plan = cut()
    broken = with_weight(small, "2.weight", torch.randn(3, 5))
    with pytest.raises(VerificationError, match=r"the cut program fails where the original does not .*4.*5"):
        verify_cut(program, broken, plan.keep)
    with pytest.raises(VerificationError, match="the cut program fails"):
        verify_finite(broken)


def test_numbers_that_are_not_finite_are_refused() -> None:
    _, small, _ = cut()
    with pytest.raises(VerificationError, match="the cut program, output 0: it holds numbers that are not finite"):
        verify_finite(with_weight(small, "2.bias", torch.full((3,), torch.nan)))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(VerificationError, match=r"it, output 0: shapes are \(2, 3\) and \(3, 2\)"):
        compare(torch.zeros(2, 3), torch.zeros(3, 2), "it")


class Cancelling(nn.Module):
    """Its outputs are what two large sums, almost the same, differ by."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 512), nn.Linear(512, 16)
        large = torch.randn(16, 256) * 1e5
        self.up.weight.data[256:], self.up.bias.data[256:] = self.up.weight.data[:256], self.up.bias.data[:256]
        self.down.weight.data = torch.cat([large, torch.randn(16, 256) - large], 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(self.up(x).relu())
        return found


def cancelling() -> tuple[gp.Program, gp.Program, gp.Plan]:
    """A right cut, whose sums are rounded otherwise than those of the original."""
    torch.manual_seed(0)
    program = gp.trace(Cancelling(), (torch.randn(64, 16),))
    pairs = torch.randperm(256)[:100]
    kept = tuple(torch.cat([pairs, pairs + 256]).sort().values.tolist())
    plan = make(program, gp.analyze(program), {"up.weight:0": (kept,)})
    return program, gp.apply(program, plan), plan


def test_rounding_of_single_precision_is_told_from_a_wrong_cut() -> None:
    program, small, plan = cancelling()
    x = torch.randn(64, 16)
    with pytest.raises(VerificationError, match="they differ"):
        compare(mask_program(program, plan.keep).module()(x), small.module()(x), "in single precision")
    found = verify_cut(program, small, plan.keep)
    assert found.max_error < 1e-9 and found.tolerance == STORED
    wrong = with_weight(small, "up.bias", small.weights["up.bias"] + 1e-4 * torch.eye(200)[0])
    with pytest.raises(VerificationError, match=r"masked and cut program: they differ by .* allowed is 1e-04"):
        verify_cut(program, wrong, plan.keep)


def test_the_rounding_of_new_weights_is_that_of_the_computation() -> None:
    program, _, _ = cancelling()
    weight = program.weights["down.weight"]
    rounded = with_weight(program, "down.weight", torch.nextafter(weight, weight + torch.randn(weight.shape).sign()))
    wrong = with_weight(program, "down.weight", weight * (1 + 1e-3 * torch.randn(weight.shape)))
    assert verify_cut(program, rounded, {}, rounded=True).max_error <= STORED
    with pytest.raises(VerificationError, match=r"they differ by .* allowed is 1e-04"):
        verify_cut(program, rounded, {})
    with pytest.raises(VerificationError, match=r"they differ by .* allowed is 1e-04"):
        verify_cut(program, wrong, {}, rounded=True)


def test_a_program_in_double_precision_keeps_its_bound() -> None:
    torch.manual_seed(0)
    program = gp.trace(nn.Linear(6, 3).double(), (torch.randn(4, 6).double(),))
    near = with_weight(program, "weight", program.weights["weight"] * (1 + 1e-6))
    with pytest.raises(VerificationError, match=r"they differ by .* allowed is 1e-07"):
        verify_cut(program, near, {})


def test_only_cases_that_differ_in_single_precision_are_run_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    program, small, plan = cancelling()
    reference, run, runs = mask_program(program, plan.keep), interpreter.run, list[list[int]]()
    inputs: list[Inputs] = [
        ((torch.randn(64, 16),), {}),
        ((torch.randn(8, 16),), {}),
        ((torch.full((4, 16), torch.nan),), {}),
    ]
    cases = Cases(inputs, (0, 1, 2), run(reference, inputs, (0, 1, 2)), (), ())

    def counted(program: gp.Program, cases: Sequence[Inputs], seeds: Sequence[int]) -> list[Any]:
        runs.append([len(args[0]) for args, _ in cases])
        return run(program, cases, seeds)

    monkeypatch.setattr(interpreter, "run", counted)
    assert compared(reference, small, cases, None, False).agree
    assert runs == [[64, 8, 4], [8], [8], [64], [64]]
    runs.clear()
    wrong = with_weight(small, "up.bias", small.weights["up.bias"] + 1e-2 * torch.eye(200)[0])
    with pytest.raises(VerificationError, match="they differ"):
        compared(reference, wrong, cases, None, False)
    assert runs == [[64, 8, 4], [8], [8]]


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.up(x).relu())
        return torch.complex(y, y.cos())


class Recurrent(nn.Module):
    """Reads a buffer of zeros before it writes to it: the weights that meet it show themselves in the second call."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.again, self.down = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.state = nn.Buffer(torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = (self.up(x) + self.again(self.state)).tanh()
        self.state.copy_(y)
        return self.down(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "name", "count"), [(Waves, "down.weight", 4), (Recurrent, "again.weight", 6), (Recurrent, "up.bias", 6)]
)
def test_outputs_of_two_parts_and_weights_that_meet_a_state(module: type[nn.Module], name: str, count: int) -> None:
    torch.manual_seed(0)
    program = gp.trace(module().eval(), (torch.randn(4, 6),))
    plan = gp.plan(program, ratio=0.5)
    small = gp.apply(program, plan)
    assert gp.verify(program, small, plan).cases == count
    with pytest.raises(VerificationError, match="they differ by"):
        gp.verify(program, with_weight(small, name, torch.randn(small.shapes()[name])), plan)
