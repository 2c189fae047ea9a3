"""The benchmark of wrong cuts tells real mistakes from those without effect, and counts what the proof refuses."""

from collections.abc import Iterator
from random import Random

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.execution.equivalence import mask_program
from graphprune.ir.program import Program
from tools import benchmark_mutations
from tools.benchmark_mutations import Verdict, judged, table
from tools.mutation_benchmark.mutants import KINDS, Case, Mutant, literal, mutants, noise
from tools.mutation_benchmark.truth import Reference, differs


class Masked(nn.Module):
    """Two layers with a scale, a buffer, a mean over a group, and a mask whose marks are in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3)
        self.shift, self.ban = nn.Buffer(torch.randn(8)), nn.Buffer(torch.tensor([False, True, False]))

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        y = self.norm(torch.relu(self.a(x) * 0.5 + self.shift)).masked_fill(~kept[:, None], 0.0)
        return self.b(y).masked_fill(self.ban, -1e9)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return gp.trace(Masked(), (torch.randn(4, 6), torch.tensor([True, False, True, True])))


@pytest.fixture(scope="module")
def case(program: Program) -> Case:
    return benchmark_mutations.cut(program, Random(0))


def test_every_kind_of_mistake_is_made_and_those_that_matter_are_real(case: Case) -> None:
    reference = Reference.of(mask_program(case.program, case.plan.keep))
    assert len(reference.cases) >= 5
    assert not reference.is_changed_by(case.small)
    made = list(mutants(case, 60, Random(0)))
    assert len({mutant.kind for mutant in made}) == len(KINDS)
    real = {mutant.kind for mutant in made if reference.is_changed_by(mutant.program)}
    assert {"two indices swapped", "noise in place of a weight", "a mask ignored", "an index too many"} <= real


def test_literals_of_kernels_that_do_not_check_them_stay() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0] * 0.5)  # type: ignore[no-any-return]

    case = benchmark_mutations.cut(gp.trace(Recurrent(), (torch.randn(2, 3, 4),)), Random(0))
    made = [literal(case, Random(seed)) for seed in range(20)]
    assert any(made) and not any(mutant and mutant.what.startswith("gru") for mutant in made)


def test_an_output_differs_beyond_its_marks() -> None:
    reference = torch.tensor([1.0, -2.0, -3.4e38, float("-inf")])
    assert not differs(reference, reference.clone())
    assert not differs(reference, reference * torch.tensor([1.0005, 1.0, 1.0, 1.0]))
    assert differs(reference, reference * torch.tensor([1.01, 1.0, 1.0, 1.0]))
    assert differs(reference, torch.tensor([1.0, -2.0, 0.0, float("-inf")]))


def test_verdicts_say_what_the_proof_lets_pass(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_noise(case: Case, count: int, random: Random) -> Iterator[Mutant]:
        yield from filter(None, (noise(case, random) for _ in range(count)))

    monkeypatch.setattr(benchmark_mutations, "mutants", only_noise)
    first = list(judged("net", lambda: program, 3, 0))
    assert len(first) == 3 and all(verdict.real for verdict in first)
    assert first == list(judged("net", lambda: program, 3, 0)), "a seed determines everything"
    monkeypatch.setattr(benchmark_mutations, "verify_cut", lambda *_, **__: None)
    assert not any(verdict.refused for verdict in judged("net", lambda: program, 3, 0))


def test_the_table_counts_mistakes_without_effect_apart() -> None:
    verdicts = [
        Verdict("net", "swap", "", real, refused) for real, refused in ((True, True), (True, False), (False, False))
    ]
    assert list(table(verdicts))[2:] == ["| swap | 3 | 1 | 2 | 1 (50.0%) |", "| all | 3 | 1 | 2 | 1 (50.0%) |"]
