"""Blocks are found in the graph, dropped where they matter least, proven, and taken out of the module too."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.axes.residual_blocks import drop_units, droppable_units, zero_residuals
from graphprune.errors import PipelineError, PlanError, WriteBackError
from graphprune.evaluation.masked_loss import Objective
from graphprune.execution.output_comparison import Verification
from graphprune.frontends.modules import trace
from graphprune.ir.program import Dropped, Program
from graphprune.passes.allocation.allocate import with_target
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.depth import IMPORTANCES
from graphprune.passes.depth.drop_blocks import Drop, drop
from graphprune.passes.selection.select import Select
from graphprune.pipeline import Pipeline
from graphprune.planning.budget import Budget
from graphprune.planning.plan import Plan
from graphprune.statistics.collector import Calibration
from tests.recipes import pipeline_of

Tiny = Callable[..., nn.Module]
Inputs = Callable[[str], dict[str, Any]]
ALL = {
    "llama": "model.layers", "opt": "model.decoder.layers", "gpt2": "transformer.h", "bert": "bert.encoder.layer",
    "vit": "vit.layers", "resnet-basic": "resnet.encoder.stages.1.layers", "mobilenet": "mobilenet_v2.layer",
}  # fmt: skip


class Block(nn.Module):
    """A residual block that knows its place, and how much it does."""

    def __init__(self, place: int, size: float) -> None:
        super().__init__()
        self.place, self.up, self.down = place, nn.Linear(6, 8), nn.Linear(8, 6)
        with torch.no_grad():
            self.down.weight.mul_(size)
            self.down.bias.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Blocks of different sizes, a layer in front and one behind."""

    def __init__(self, *sizes: float) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(Block(i, size) for i, size in enumerate(sizes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


def stack(*sizes: float) -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    model = Stack(*sizes)
    calls: tuple[Any, ...] = tuple(((torch.randn(5, 4),), {}) for _ in range(3))
    return model, Pipeline((gp.Analyze(), Calibrate(batches=calls)))(trace(model, calls[0][0]))


def traced(tiny: Tiny, inputs: Inputs, kind: str, **changes: Any) -> tuple[nn.Module, Program]:
    decoder = kind in ("llama", "opt", "gpt2")
    model = tiny(kind, **({"use_cache": False} if decoder else {}), **changes)
    return model, trace(model, (), inputs(kind))


@pytest.mark.parametrize("kind", ALL)
def test_layers_of_models_are_blocks_and_can_be_dropped(tiny: Tiny, inputs: Inputs, kind: str) -> None:
    model, program = traced(tiny, inputs, kind)
    found = {unit.name: unit for unit in droppable_units(program)}
    block = next(unit for unit in found.values() if unit.whole and unit.name.startswith(ALL[kind]))
    assert block.parameters >= {n for n, _ in model.named_parameters() if n.startswith(f"{block.name}.")}
    small = drop(program, [block.name])
    gone = sum(p.numel() for n, p in model.named_parameters() if n.startswith(f"{block.name}."))
    assert small.count() == program.count() - gone
    assert small.fact(Verification).max_error <= 1e-5
    before = len(model.get_submodule(ALL[kind]))  # type: ignore[arg-type]
    small.write_back(model)
    assert len(model.get_submodule(ALL[kind])) == before - 1  # type: ignore[arg-type]
    names = {n for n, _ in model.named_parameters()}
    assert small.parameters <= names | {*small.ties}


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_branches_are_what_is_added_to_the_stream(tiny: Tiny, inputs: Inputs, kind: str) -> None:
    model, program = traced(tiny, inputs, kind)
    found = [unit for unit in droppable_units(program) if not unit.whole]
    assert [unit.name for unit in found] == [f"{ALL[kind]}.{i}:{j}" for i in range(2) for j in range(2)]
    small = drop(program, [found[2].name])
    assert small.parameters == program.parameters - found[2].parameters
    with pytest.raises(WriteBackError, match=r"parts of blocks, such as .*:0, cannot be removed from a module"):
        small.write_back(model)


def test_what_is_no_residual_stays(tiny: Tiny) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.place = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.place
            x = x + x.square() * 0.1
            for layer in self.layers:
                x = torch.relu(layer(x)) + torch.tanh(layer(x))
            return x

    assert droppable_units(trace(Plain(), (torch.randn(2, 4),))) == []


def test_a_block_whose_parameters_others_read_is_none() -> None:
    class Shared(Stack):
        def __init__(self) -> None:
            super().__init__(1, 1)
            self.blocks[1].up = self.blocks[0].up

    torch.manual_seed(0)
    model, x = Shared(), torch.randn(5, 4)
    program = trace(model, (x,))
    assert [unit.name for unit in droppable_units(program) if unit.whole] == ["blocks.1"]
    small = drop(program, ["blocks.1"])
    small.write_back(model)
    assert not small.ties and torch.allclose(model(x), small.module()(x), atol=1e-6)


def test_the_rewritten_graph_is_the_one_in_which_the_branch_is_times_zero() -> None:
    model, program = stack(1, 1, 1)
    assert isinstance(model, Stack)
    unit = [u for u in droppable_units(program) if u.name == "blocks.1"]
    x = torch.randn(5, 4)
    with torch.no_grad():
        expected = model.head(model.blocks[2](model.blocks[0](model.stem(x))))
        assert torch.equal(drop_units(program, unit).module()(x), expected)
        assert torch.allclose(zero_residuals(program, unit).module()(x), expected)
        assert torch.equal(drop(program, ["blocks.1"]).module()(x), expected)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_the_block_that_does_least_goes_first(name: str) -> None:
    model, program = stack(1, 0.5, 0.01, 0.8)
    small = Drop(name, count=1)(program)
    assert small.fact(Dropped).blocks == ("blocks.2",)
    small.write_back(model)
    blocks = model.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList) and [block.place for block in blocks] == [0, 1, 2]
    x = torch.randn(5, 4)
    assert torch.allclose(model(x), small.module()(x), atol=1e-6)


def test_importances_are_what_the_papers_say() -> None:
    model, program = stack(1, 0.5)
    assert isinstance(model, Stack)
    found = droppable_units(program)
    x = torch.cat([leaves[0] for leaves in program.fact(Calibration).batches])
    with torch.no_grad():
        streams = [model.stem(x)]
        for block in model.blocks:
            streams.append(block(streams[-1]))
    pairs = list(pairwise(streams))
    angles = [float((1 - torch.cosine_similarity(a, b, dim=1)).mean()) for a, b in pairs]
    changes = [float(((b - a).norm(dim=1) / a.norm(dim=1)).mean()) for a, b in pairs]
    alone = [Objective.of(program).loss_of(drop_units(program, [unit])) for unit in found]
    for name, expected in {"shortgpt": angles, "comp": changes, "sleb": alone}.items():
        got = IMPORTANCES[name].importance(program, found, lambda unit: drop_units(program, [unit]))
        assert got == pytest.approx(expected, rel=1e-4)


def test_sleb_asks_anew_after_each_block() -> None:
    """By brute force: the greedy path, each step the block without which the current model is best."""
    _, program = stack(1, 0.7, 0.4, 0.9, 0.6)
    judge, left, gone = Objective.of(program), droppable_units(program), list[Any]()
    for _ in range(3):
        best = min(left, key=lambda unit: judge.loss_of(drop_units(program, [*gone, unit])))
        gone, left = [*gone, best], [unit for unit in left if unit is not best]
    assert set(Drop("sleb", count=3)(program).fact(Dropped).blocks) == {unit.name for unit in gone}


def test_a_sparsity_is_met_as_nearly_as_whole_blocks_can() -> None:
    _, program = stack(1, 0.5, 0.01, 0.8)
    block = sum(p.numel() for p in Block(0, 1).parameters())
    for sparsity in (0.15, 0.3, 0.5):
        blocks = Drop(sparsity=sparsity)(program).fact(Dropped).blocks
        assert abs(len(blocks) * block - sparsity * program.count()) <= block / 2


def test_cuts_follow_a_drop_and_both_are_written_back() -> None:
    model, program = stack(1, 0.5, 0.01, 0.8)
    short = Drop(count=1)(program)
    steps = gp.Analyze(), gp.Score("magnitude"), gp.Allocate(ratio=0.5), Select(), gp.Rewrite(), gp.Verify()
    small = Pipeline(steps)(short)
    assert small.fact(Plan).blocks == ("blocks.2",)
    x = torch.randn(5, 4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small.write_back(model)
    assert torch.allclose(model(x), small.module()(x), atol=1e-5)
    assert len(model.get_submodule("blocks")) == 3 and len(state) > len(model.state_dict())  # type: ignore[arg-type]


def test_a_module_that_needs_a_block_is_restored() -> None:
    class Counting(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for i in range(3):
                x = self.blocks[i](x)
            return self.head(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Counting(1, 1, 1), torch.randn(5, 4)
    expected = model(x)
    small = drop(trace(model, (x,)), ["blocks.1"])
    with pytest.raises(WriteBackError, match=r"Counting does not work without blocks\.1 \(.*use the rewritten graph"):
        small.write_back(model)
    assert torch.equal(model(x), expected) and [block.place for block in model.blocks] == [0, 1, 2]


def test_what_cannot_be_dropped_is_said() -> None:
    _, program = stack(1, 1)
    with pytest.raises(PlanError, match="2 of 2 blocks cannot be dropped: at least one must be retained"):
        Drop(count=2)(program)
    with pytest.raises(PlanError, match="ask for more"):
        Drop(sparsity=0.01)(program)
    with pytest.raises(PlanError, match="give either count"):
        Pipeline((gp.Analyze(), Calibrate(), Drop()))
    with pytest.raises(PlanError, match=r"the model has no block 'blocks\.7' that can be dropped; it has blocks\.0, b"):
        drop(program, ["blocks.7"])
    with pytest.raises(PipelineError, match="Calibration"):
        Pipeline((gp.Analyze(), Drop(count=1)))
    assert Dependencies not in drop(program, ["blocks.0"]).facts


def test_blocks_give_a_share_of_what_is_to_go_and_groups_the_rest() -> None:
    """Of four equal blocks the least important goes where that is nearer to the share; the whole target is met."""
    model, _ = stack(1, 0.5, 0.01, 0.8)
    generator = torch.Generator().manual_seed(1)
    calls: Any = tuple(((torch.randn(5, 4, generator=generator),), {}) for _ in range(9))
    block = sum(p.numel() for p in Block(0, 1).parameters())
    gone = ("blocks.2",)
    for sparsity, coarse, dropped in ((0.5, None, gone), (0.3, 0.25, ()), (0.3, None, gone), (0.3, 0, ())):
        program = trace(model, calls[0][0])
        small = pipeline_of("comp", sparsity=sparsity, coarse=coarse, batches=calls)(program)
        assert small.fact(Plan).blocks == dropped and small.fact(Plan).groups
        assert small.count() == pytest.approx((1 - sparsity) * program.count(), abs=block / 8)
        assert small.fact(Verification).max_error <= 1e-4
        gp.apply(program, small.fact(Plan))


def test_a_budget_counts_blocks_that_are_gone() -> None:
    _, program = stack(1, 0.5, 0.01, 0.8)
    short = gp.Analyze()(Drop(count=1)(program))
    found = short.fact(Dependencies)
    for unit in ("parameters", "macs"):
        budget = Budget(found, (), 0, short.parameters, unit)
        before = Budget(program.fact(Dependencies), (), 0, program.parameters, unit)
        assert with_target(budget, 0.5, short).target == budget.total - round(0.5 * before.total)
        assert with_target(budget, 0.01, short).target == 0


def test_a_share_for_blocks_that_cannot_be_is_said() -> None:
    for name in ("fasp", "sleb"):
        with pytest.raises(PlanError, match=f"recipe {name} has no share for blocks"):
            pipeline_of(name, sparsity=0.3, coarse=0.5)
    with pytest.raises(PlanError, match="at least 0 and below 1, got 1"):
        pipeline_of("comp", sparsity=0.3, coarse=1)
    with pytest.raises(PlanError, match="blocks are dropped until enough parameters are removed, not macs"):
        pipeline_of("comp", sparsity=0.3, budget="macs")
