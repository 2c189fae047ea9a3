"""Programs that run a node at a time give what their modules give, with few weights in memory."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import graphprune as gp
from graphprune.execution import interpreter
from graphprune.execution.equivalence import mask_program, run
from graphprune.execution.segments import split
from graphprune.frontends.modules import trace
from graphprune.ir.program import Inputs, Program
from tests.rule_examples import KINDS, WITH_EXAMPLES
from tests.streams import assert_same, assert_streamed
from tools.recipe_benchmark.resnet import ResNet

TINY = ("llama", "gpt2", "vit", "resnet-basic")


@pytest.mark.parametrize("kind", sorted(WITH_EXAMPLES))
def test_every_operator(kind: str) -> None:
    torch.manual_seed(0)
    for example in KINDS[kind].examples():
        assert_streamed(trace(example.module, example.args))


@pytest.mark.parametrize("kind", TINY)
def test_architectures_and_their_cuts(
    kind: str, tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]]
) -> None:
    program = gp.trace(tiny(kind), (), inputs(kind))
    plan = gp.plan(program, ratio=0.5, recipe="magnitude")
    for one in (program, mask_program(program, plan.keep), gp.apply(program, plan)):
        assert_streamed(one)


def test_a_trained_decoder(shared_data: Callable[[str], Path]) -> None:
    program = gp.load(shared_data("stories260k"))
    assert_streamed(program)
    assert_streamed(gp.apply(program, gp.plan(program, sparsity=0.2, recipe="magnitude")))


def test_a_trained_network_of_convolutions(shared_data: Callable[[str], Path]) -> None:
    module = ResNet()
    stored = load_file(shared_data("vision/resnet20_cifar10jpeg_fp16.safetensors"))
    module.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in stored.items()})
    program = gp.trace(module.eval(), (torch.randn(2, 3, 32, 32),))
    assert_streamed(program)


class Odd(nn.Module):
    """Returns inputs, weights and constants, in a structure, beside what it draws and counts."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, more: dict[str, Tensor], flag: int = 3) -> dict[str, Any]:
        self.calls += 1
        drawn = torch.rand_like(x)
        return {
            "pair": (x, self.a.weight), "made": self.a(x) * self.calls + drawn, "flag": flag, "none": None,
            "more": [more["y"], torch.arange(3)], "again": drawn + torch.rand_like(x),
        }  # fmt: skip


def odd() -> Program:
    torch.manual_seed(0)
    return gp.trace(Odd(), (torch.randn(3, 4),), {"more": {"y": torch.randn(3)}})


def test_outputs_of_all_kinds_and_random_numbers() -> None:
    assert_streamed(odd())


def test_cases_do_not_see_each_other() -> None:
    program = odd()
    inputs = (torch.randn(3, 4),), {"more": {"y": torch.zeros(3)}}
    before = torch.get_rng_state()
    first, second, third = interpreter.run(program, [inputs] * 3, (5, 6, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(first, third)
    assert not torch.equal(first["made"], second["made"])
    assert torch.equal(program.weights["calls"], torch.zeros(())), "a run must not change the program"


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) + 1


def test_inputs_stay_as_they_are() -> None:
    program, x = gp.trace(Writes(), (torch.ones(3, 4),)), torch.ones(3, 4)
    (got,) = interpreter.run(program, [((x,), {})], (0,))
    assert torch.equal(got, torch.full((3, 4), 3.0)) and torch.equal(x, torch.ones(3, 4))


@dataclass
class Watched(Mapping[str, Tensor]):
    """Weights that are copied when they are read, and how many bytes of them were alive at most."""

    base: Mapping[str, Tensor]
    alive: int = 0
    most: int = 0
    reads: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name].clone()
        self.reads.append(name)
        self._count(tensor.nbytes)
        weakref.finalize(tensor.untyped_storage(), self._count, -tensor.nbytes)  # a parameter shares it
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)

    def _count(self, size: int) -> None:
        self.alive += size
        self.most = max(self.most, self.alive)


def watched(program: Program) -> tuple[Program, Watched]:
    found = Watched(program.weights)
    return replace(program, weights=found), found


def test_the_weights_of_one_operator_are_held_and_all_is_read_once() -> None:
    program, seen = watched(gp.trace(nn.Sequential(*(nn.Linear(16, 16) for _ in range(9))), (torch.randn(2, 16),)))
    cases: list[Inputs] = [((torch.randn(size, 16),), {}) for size in (2, 3, 4)]
    found = interpreter.run(program, cases, (0, 1, 2))
    assert seen.most == 4 * (16 * 16 + 16) and seen.alive == 0
    assert sorted(seen.reads) == sorted(program.weights)
    assert_same([run(program.module(), *case) for case in cases], found)


def test_a_tied_weight_is_read_again_where_it_is_needed_again(folder: Path) -> None:
    program, seen = watched(gp.load(folder))
    interpreter.run(program, [program.inputs], (0,))
    tied = [name for name in seen.reads if name == "model.embed_tokens.weight"]
    largest = max(
        sum(4 * program.weights[name].numel() for name in segment.weights(program))
        for segment in split(program, {node.name for node in program.graph.nodes})
    )
    assert len(tied) == 2 and seen.most <= largest < 4 * program.count() / 3


def test_a_graph_that_cannot_be_divided_is_run_all_the_same() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
            self.last = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            kept = [x]
            for one in self.maps:
                kept.append(one(sum(kept)))
            return torch.cat([kept[0] @ self.last, *kept])

    program, seen = watched(gp.trace(Whole(), (torch.randn(2, 8),)))
    interpreter.run(program, [program.inputs], (0,))
    assert seen.most < 4 * program.count()
    assert_streamed(program)


def test_proofs_hold_little() -> None:
    program, seen = watched(gp.trace(nn.Sequential(*(nn.Linear(16, 16) for _ in range(9))), (torch.randn(2, 16),)))
    plan = gp.plan(program, ratio=0.5)
    small = gp.apply(program, plan)
    seen.most = seen.alive
    assert gp.verify(program, small, plan).max_error < 1e-6
    assert seen.most <= 2 * 4 * (16 * 16 + 16)
