"""Inputs of a proof reach branches that the example does not, at other sizes, as far as the program accepts them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import graphprune as gp
from graphprune.errors import VerificationError
from graphprune.execution.cases.fresh_cases import accepted
from graphprune.execution.cases.fresh_inputs import fresh_inputs
from graphprune.ir.weights import Layered

IMAGE = 7


class Reader(nn.Module):
    """Features in the place of some ids, masked tokens, and one of two heads for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head, self.other = nn.Embedding(9, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, ids: Tensor, mask: Tensor, flags: Tensor, features: Tensor) -> Tensor:
        x = self.table(ids).masked_scatter((ids == IMAGE)[..., None], features)
        pooled = (x * mask[..., None]).sum(1)
        return torch.where(flags[:, None], self.head(pooled), self.other(pooled))


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Tensor]]:
    ids = torch.tensor([[1, 2, IMAGE, 3, 3, 2], [1, IMAGE, 2, 3, 1, 1]])
    example = (ids, torch.ones_like(ids), torch.ones(2).bool(), torch.randn(2, 4))
    shapes = ({0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO}, None)
    program = gp.trace(Reader(), example, dynamic_shapes=shapes)
    names = ("ids", "mask", "flags", "features")
    return [dict(zip(names, args, strict=True)) for args, _ in accepted(program).inputs]


def test_every_row_of_a_table_but_the_mark_is_drawn(cases: list[dict[str, Tensor]]) -> None:
    drawn = torch.cat([case["ids"].flatten() for case in cases])
    assert drawn.min() >= 0 and drawn.max() <= 8 and len(set(drawn.tolist())) >= 7
    first = cases[0]["ids"]
    assert (first == IMAGE).nonzero().tolist() == [[0, 2], [1, 1]]


def test_masks_are_plain_first_then_padded(cases: list[dict[str, Tensor]]) -> None:
    assert cases[0]["mask"].all()
    left, right = cases[1]["mask"], cases[2]["mask"]
    assert left[1, 0] == 0 and left[1, -1] == 1 and left[0].all()
    assert right[1, -1] == 0 and right[1, 0] == 1
    assert any(len(set(case["flags"].tolist())) == 2 for case in cases)


def test_sizes_are_far_from_the_traced_ones(cases: list[dict[str, Tensor]]) -> None:
    lengths = [case["ids"].shape[1] for case in cases]
    assert max(lengths) >= 3 * 6 and min(lengths) == 3
    assert max(case["ids"].shape[0] for case in cases) == 5


class Lengths(nn.Module):
    """Splits by the numbers of an input, which can be no others."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        parts = torch.split(self.up(x), (ends[1:] - ends[:-1]).tolist())
        return self.down(torch.cat([part.relu() for part in parts]))  # type: ignore[no-any-return]


def test_integers_that_steer_sizes_are_those_of_the_example() -> None:
    program = gp.trace(Lengths(), (torch.randn(6, 8), torch.tensor([0, 2, 6])))
    plan = gp.plan(program, ratio=0.5)
    proof = gp.verify(program, gp.apply(program, plan), plan)
    assert all(size == "x 6x8 with the integers of the example" for size in proof.sizes) and proof.refused_sizes


class Scaled(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        total = tensors[0].sum()
        for tensor in tensors[1:]:
            total = total + tensor.sum()
        return total


@pytest.mark.parametrize(
    ("example", "holds"),
    [
        (torch.zeros(40, 3), lambda x: x.std() > 0.5),
        (torch.rand(40, 3) + 5, lambda x: x.min() >= 5),
        (torch.tensor([[0.0, -torch.inf]] * 9), lambda x: set(x.flatten().tolist()) == {0.0, -torch.inf}),
        (torch.arange(6).expand(2, 6), lambda x: x.equal(torch.arange(6).expand(2, 6))),
    ],
)
def test_values_are_of_the_kind_of_the_example(example: Tensor, holds: Any) -> None:
    program = gp.trace(Scaled(), (example.clone(), torch.ones(2)))
    (x, _), _ = fresh_inputs(program, 0)
    assert x.shape == example.shape and holds(x)


def test_ones_may_be_a_mask_that_excludes_nothing() -> None:
    program = gp.trace(Scaled(), (torch.ones(8, 5), torch.ones(2)))
    plain, *_, mixed = (inputs[0][0] for inputs in accepted(program).inputs)
    assert set(mixed.flatten().tolist()) == {0.0, 1.0} and len(set(plain.flatten().tolist())) == plain.numel()


class Kinds(nn.Module):
    """Has a path for rows of kind 3, which the example lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        return torch.where(kind[:, None] == 3, x.cos(), x + self.table(kind))


def test_a_vector_has_marks_that_the_example_lacks() -> None:
    program = gp.trace(Kinds(), (torch.randn(6, 3), torch.zeros(6, dtype=torch.long)))
    drawn = torch.cat([accepted(program).inputs[i][0][1] for i in (1, 2, 3)])
    assert 0 < int((drawn == 3).sum()) < len(drawn) and set(drawn.tolist()) == {0, 1, 2, 3}


class Branches(nn.Module):
    """One of two paths, by what a condition says of the second input."""

    def __init__(self, condition: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.condition = condition
        self.up, self.down, self.wide, self.narrow = (nn.Linear(a, b) for a, b in ((6, 8), (8, 5)) * 2)

    def forward(self, x: Tensor, decisive: Tensor) -> Tensor:
        usual, rare = self.down(self.up(x).relu()), self.narrow(self.wide(x).relu())
        return torch.where(self.condition(decisive), rare, usual)


@pytest.mark.parametrize(
    ("condition", "example"),
    [
        (lambda t: (t > 5)[:, None], torch.zeros(4, dtype=torch.long)),
        (lambda t: (t <= 3)[:, None], torch.full((4,), 9)),
        (lambda t: t == 2, torch.tensor(0)),
        (lambda t: (t[:, 1] == 2)[:, None], torch.zeros(4, 3, dtype=torch.long)),
        (lambda t: t < -1e4, torch.zeros(4, 1)),
        (lambda t: t >= 0.5, torch.tensor(0.0)),
    ],
)
def test_conditions_have_both_answers(condition: Callable[[Tensor], Tensor], example: Tensor) -> None:
    """So noise in the weights of the path that the example does not take is refused."""
    torch.manual_seed(0)
    program = gp.trace(Branches(condition), (torch.randn(4, 6), example))
    answers = torch.cat([condition(args[1]).flatten() for args, _ in accepted(program).inputs])
    assert set(answers.tolist()) == {True, False}
    small = gp.apply(program, plan := gp.plan(program, ratio=0.5))
    gp.verify(program, small, plan)
    for name in ("wide.weight", "narrow.bias", "up.weight"):
        noise = {name: torch.randn(small.weights[name].shape)}
        with pytest.raises(VerificationError, match="differ by"):
            gp.verify(program, replace(small, weights=Layered((noise, small.weights))), plan)
