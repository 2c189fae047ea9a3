"""Linked index sets: every index of one axis may keep its own indices of another, where nothing mixes them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor, nn

from graphprune.axes.groups import Dependencies
from graphprune.execution.equivalence import verify_cut
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program
from graphprune.ir.weights import Masked, Narrowed, widen
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.planning.plan import Plan, Rows, make


class Layers(nn.Module):
    """Maps for heads, for a mixture of heads, and stacks of matrices."""

    def __init__(self, f: Callable[["Layers", Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.f, self.a, self.b, self.c = f, nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(6, 16)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 16)), nn.Parameter(torch.randn(4, 8, 5))
        self.bias, self.shared = nn.Parameter(torch.randn(4, 1, 16)), nn.Parameter(torch.randn(8))
        self.last = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.f(self, x))  # type: ignore[no-any-return]


def hidden(s: Layers, x: Tensor, bias: bool = True) -> Tensor:
    """What a stack of four matrices makes of the same rows, gated."""
    y = torch.bmm(x.expand(4, -1, -1), s.up) + s.bias * bias
    gated: Tensor = torch.relu(y[..., :8]) * y[..., 8:]
    return gated


def mixed(s: Layers, x: Tensor) -> Tensor:
    """Heads that are added to each other, as a matrix says."""
    y, weights = s.a(x).view(-1, 2, 4), s.b(x).view(-1, 2, 2)
    return torch.flatten(y + weights @ y, 1)


def mixed_by_letters(s: Layers, x: Tensor) -> Tensor:
    """The same as an equation."""
    y, weights = s.a(x).view(-1, 2, 4), s.b(x).view(-1, 2, 2)
    return torch.flatten(y + torch.einsum("bij,bjd->bid", weights, y), 1)


def fused(s: Layers, x: Tensor) -> Tensor:
    """Two branches of every head, in one map."""
    first, second = s.c(x).view(-1, 2, 2, 4).unbind(1)
    return torch.flatten(first * torch.relu(second), 1)


@dataclass(frozen=True)
class Case:
    """What happens, how many features come of it, and the sizes of the groups: ``8~4`` chooses by one of size 4."""

    name: str
    f: Callable[[Layers, Tensor], Tensor]
    features: int
    found: str


CASES = [
    Case("heads", lambda s, x: torch.relu(s.a(x).view(-1, 2, 4)).flatten(1), 8, "2 4~2"),
    Case("heads that are mixed", mixed, 8, "2 4"),
    Case("heads mixed by letters", mixed_by_letters, 8, "2 4"),
    Case(
        "two branches in segments", lambda s, x: (s.a(x) * s.c(x)[:, 8:]).view(-1, 2, 4).tanh().flatten(1), 8, "2 4~2 8"
    ),
    Case("branches of heads", fused, 8, "2 4~2"),
    Case("stacked matrices", lambda s, x: torch.bmm(hidden(s, x), s.down).sum(0), 5, "4! 8~4 5"),
    Case("one slope for all", lambda s, x: torch.bmm(hidden(s, x) * s.shared, s.down).sum(0), 5, "4! 8 5"),
    Case("one matrix for all", lambda s, x: (hidden(s, x) @ s.down[0]).sum(0), 5, "4! 8 5"),
]


def captured(f: Callable[[Layers, Tensor], Tensor], features: int) -> tuple[Program, Dependencies]:
    torch.manual_seed(0)
    program = trace(Layers(f, features), (torch.randn(7, 6),))
    found = analyze(program)
    return program.with_facts(found), found


def drawn(found: Dependencies, seed: int) -> dict[str, Rows]:
    """Half of every exact group, other indices in every row."""
    random = Random(seed)
    return {
        g.name: tuple(
            tuple(sorted(random.sample(range(g.size), max(g.least, g.size // 2)))) for _ in range(rows_of(g, found))
        )
        for g in found.groups
        if g.exact
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_who_chooses(case: Case) -> None:
    program, found = captured(case.f, case.features)
    sizes = [
        f"{g.size}{'' if g.exact else '!'}{f'~{found.by_name[g.linked].size}' if g.linked else ''}"
        for g in found.groups
    ]
    assert " ".join(sizes) == case.found
    for seed in range(4):
        plan = make(program, found, drawn(found, seed))
        assert verify_cut(program, rewrite(program, plan), plan.keep).max_error <= 1e-5


@pytest.fixture(scope="module")
def stacked() -> tuple[Program, Dependencies, Plan]:
    program, found = captured(lambda s, x: torch.bmm(hidden(s, x), s.down).sum(0), 5)
    rows = {name: kept for name, kept in drawn(found, 0).items() if len(kept) == 4}
    return program, found, make(program, found, {**rows, "up:0": ((0, 2, 3),)})


def test_every_matrix_of_a_stack_keeps_its_own_columns(stacked: tuple[Program, Dependencies, Plan]) -> None:
    program, _, plan = stacked
    name = next(name for name, rows in plan.groups.items() if len(rows) == 4)
    narrow, wide = Narrowed(program.weights, plan.keep), program.weights
    assert narrow["up"].shape == (3, 6, 8) and narrow["down"].shape == (3, 4, 5)
    for new, old in enumerate((0, 2, 3)):
        kept = list(plan.groups[name][old])
        assert torch.equal(narrow["down"][new], wide["down"][old][kept])
        assert torch.equal(narrow["up"][new], wide["up"][old][:, [*kept, *(8 + i for i in kept)]])
    again = narrow["up"]
    for dim, indices in sorted(plan.keep["up"].items()):
        again = widen(again, dim, indices, wide["up"].shape[dim])
    assert torch.equal(again, Masked(program.weights, plan.keep)["up"])


def test_magnitudes_are_those_of_each_matrix(stacked: tuple[Program, Dependencies, Plan]) -> None:
    program, found, _ = stacked
    group = next(group for group in found.groups if group.linked)
    score = SCORES["magnitude"].score(group, Evidence(program, found, None, 0))
    weights = program.weights
    parts = weights["up"].square().sum(1) + weights["bias"][:, 0].square()
    expected = parts[:, :8] + parts[:, 8:] + weights["down"].square().sum(2)
    assert torch.allclose(score, expected.sqrt().double())


def test_a_plan_with_rows_is_saved_and_read(stacked: tuple[Program, Dependencies, Plan], tmp_path: Path) -> None:
    program, _, plan = stacked
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.digest == plan.digest
    assert rewrite(program, again).shapes() == rewrite(program, plan).shapes()
