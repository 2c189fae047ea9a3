"""Everything that is registered keeps the promises of its kind, without a word about any one of them."""

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from math import isfinite
from random import Random
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import Tensor, fx, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.rule import MaskedArguments
from graphprune.execution.equivalence import verify_cut, verify_finite
from graphprune.execution.output_comparison import RTOL, Verification
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.allocation.iterative import Iterative
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Gradients
from graphprune.passes.depth.drop_blocks import Drop
from graphprune.passes.low_rank.allocate_ranks import AllocateRanks
from graphprune.passes.operators import RULES
from graphprune.passes.operators.elementwise import Elementwise, Where
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.passes.scores import SCORES
from graphprune.pipeline import PASSES, Pass, Pipeline, parse
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.index_scores import OfExperts, rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.planning.plan import Plan, Rows, make
from graphprune.statistics.moments import GradientSums, Moments, Statistics
from graphprune.workflows.recipes.catalogue import RECIPES
from tests.declared_facts import broken_promises
from tests.passes.operators.calls import calls_of
from tests.passes.operators.claims import check
from tests.recipes import pipeline_of
from tests.rule_examples import EXAMPLES, captured


def rows(found: Dependencies, group: Group, random: Random) -> Rows:
    """Random kept indices; where they are linked, mostly other ones in every row."""
    size = random.choice([n for n in range(group.least, group.size + 1) if n % group.unit == 0 or n == group.size])
    count = rows_of(group, found) if random.random() < 0.8 else 1
    return tuple(tuple(sorted(random.sample(range(group.size), size))) for _ in range(count))


def plans(program: Program, found: Dependencies, exact: bool = True) -> Iterator[Plan]:
    """A plan that cuts every group, and some that cut a few."""
    groups = [group for group in found.groups if group.maskable or not exact]
    for seed in range(4 if groups else 0):
        random = Random(seed)
        chosen = groups if seed == 0 else random.sample(groups, random.randint(1, len(groups)))
        yield make(program, found, {group.name: rows(found, group, random) for group in chosen})


@pytest.mark.parametrize(("kind", "i"), EXAMPLES)
def test_cutting_what_a_rule_calls_exact_equals_zeroing(kind: str, i: int) -> None:
    program, found = captured(kind, i)
    assert not found.opaque
    for plan in plans(program, found):
        assert verify_cut(program, rewrite(program, plan), plan.keep).max_error <= RTOL


@pytest.mark.parametrize(("kind", "i"), EXAMPLES)
def test_whatever_is_free_can_be_cut(kind: str, i: int) -> None:
    program, found = captured(kind, i)
    for plan in plans(program, found, exact=False):
        small = rewrite(program, plan)
        verify_finite(small)
        assert not analyze(replace(small, facts={})).opaque


@pytest.mark.parametrize(("kind", "i"), EXAMPLES)
def test_what_a_rule_claims_holds_on_numbers(kind: str, i: int) -> None:
    own = [call for call in calls_of(kind, i) if type(RULES[call.target]).__name__ == kind]
    for call in own[:2]:
        check(call, Random(i))


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in EXAMPLES}))
def test_a_rule_with_examples_has_one_with_something_exact_to_cut(kind: str) -> None:
    dependencies = [captured(kind, i)[1] for name, i in EXAMPLES if name == kind]
    assert any(group.maskable for found in dependencies for group in found.groups)


def test_every_rule_occurs_in_an_example() -> None:
    graphs = [captured(kind, i)[0].graph for kind, i in EXAMPLES]
    seen = {node.target for graph in graphs for node in graph.nodes}
    covered = {type(RULES[target]) for target in seen if target in RULES}
    missing = [str(target) for target, rule in RULES.items() if type(rule) not in covered]
    assert missing == [], f"no example uses these rules, so nothing checks them: {missing}"


def simple(target: Any) -> bool:
    """Is it of the form f(x), or f(x, y), tensors only?"""
    wanted = [a for a in target._schema.arguments if not a.has_default_value() and not a.kwarg_only]
    return bool(wanted) and all(str(argument.type) == "Tensor" for argument in wanted)


def element_wise() -> list[Any]:
    """The element-wise operators that can be called with tensors alone."""
    return [
        target for target, rule in RULES.items()
        if isinstance(rule, Elementwise) and not isinstance(rule, Where) and simple(target)
    ]  # fmt: skip


@pytest.mark.parametrize("target", element_wise(), ids=str)
def test_element_wise_operators_make_of_masked_numbers_what_their_rule_says(target: Any) -> None:
    names = [a.name for a in target._schema.arguments if not a.has_default_value() and not a.kwarg_only]
    dtype = torch.int64 if any(word in str(target) for word in ("bitwise", "shift", "gcd", "lcm", "__")) else None
    graph = fx.Graph()
    nodes = [graph.placeholder(name) for name in names]
    call = graph.call_function(target, tuple(nodes))
    for node in nodes:
        node.meta["val"] = torch.ones(3, dtype=dtype)
    for known in [dict.fromkeys(nodes, 0.0), dict.fromkeys(nodes, 1.0), *({node: 0.0} for node in nodes)]:
        said = RULES[target].masked_value(call, MaskedArguments(known, frozenset(nodes), ()))
        for other in (1, 2, -3):
            values = [torch.full((3,), known.get(node, other), dtype=dtype or torch.float32) for node in nodes]
            if said is not None and isfinite(said):
                got = target(*values)
                assert got.shape == (3,) and got.double().tolist() == pytest.approx([said] * 3, rel=1e-6)


@cache
def network() -> Program:
    """A small network with a group of each kind: channels, neurons, heads with linked value dimensions."""
    torch.manual_seed(0)
    return trace(Mixed(), (torch.randn(2, 5, 6),))


class Mixed(nn.Module):
    """Attention, a feed-forward layer and a convolution, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        attention, up, down = nn.Linear(6, 3 * 12), nn.Linear(12, 16), nn.Linear(16, 4)
        self.qkv, self.up, self.down = attention, up, down
        self.first, self.norm, self.second = nn.Conv1d(4, 26, 3, padding=1), nn.BatchNorm1d(26), nn.Conv1d(26, 2, 1)
        nn.init.uniform_(self.norm.weight)
        nn.init.uniform_(self.norm.bias, -0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (3, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = self.down(torch.relu(self.up(y)))
        return self.second(torch.relu(self.norm(self.first(y.transpose(1, 2)))))  # type: ignore[no-any-return]


def batches(count: int = 9) -> tuple[tuple[tuple[Tensor], dict[str, Any]], ...]:
    """Calls of the network."""
    generator = torch.Generator().manual_seed(1)
    return tuple(((torch.randn(4, 5, 6, generator=generator),), {}) for _ in range(count))


@pytest.fixture(scope="module")
def calibrated() -> Program:
    calibrate = Calibrate(batches=batches(), moments="full", producers=True)
    return Pipeline((gp.Analyze(), calibrate, Gradients(energy), Gradients(energy, "outputs")))(network())


def cut_first(recipe: str) -> type[Pass]:
    """The first pass of a recipe that makes a plan."""
    return next(type(step) for step in RECIPES[recipe].passes if Plan in step.makes)


def of_experts(score: str) -> bool:
    """Whether a score rates whole experts, which the networks of these tests lack (see test_whole_experts)."""
    return isinstance(SCORES[score], OfExperts)


def energy(output: Tensor, batch: int) -> Tensor:
    """A loss."""
    return (output - batch).square().mean()


def evidence(program: Program, seed: int) -> Evidence:
    return Evidence(program, program.fact(Dependencies), program.fact(Statistics), seed, program.fact(GradientSums))


@pytest.mark.parametrize("name", [name for name in SCORES if not of_experts(name)])
def test_scores_have_a_row_a_link_and_follow_the_seed(name: str, calibrated: Program) -> None:
    method, found = SCORES[name], calibrated.fact(Dependencies)
    groups = [group for group in method.scored(calibrated, found.groups) if group.exact]
    assert groups
    for group in groups:
        score = method.score(group, evidence(calibrated, seed=3))
        assert score.shape == (rows_of(group, found), group.size)
        assert torch.isfinite(score).all() and len(set(score.flatten().tolist())) > 1
        assert torch.equal(score, method.score(group, evidence(calibrated, seed=3)))


@pytest.mark.parametrize("target", [60, 200])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_allocations_meet_their_budget(name: str, target: int, calibrated: Program) -> None:
    found = calibrated.fact(Dependencies)
    groups = [group for group in found.groups if group.exact]
    scores = {group.name: torch.rand(rows_of(group, found), group.size, dtype=torch.float64) for group in groups}
    budget = Budget(found, [Knob.of([group]) for group in groups], target, calibrated.parameters)
    shares = ALLOCATIONS[name].shares(budget, scores, evidence(calibrated, seed=3))
    assert shares.keys() == scores.keys()
    assert all(0 <= share <= 1 for share in shares.values())
    assert budget.removed(budget.widths(shares)) == pytest.approx(target, abs=0.5)


@pytest.mark.parametrize("damping", [None, 0.1])
@pytest.mark.parametrize("name", RECONSTRUCTIONS)
def test_reconstructions_fit_what_is_kept_and_do_no_harm(name: str, damping: float | None) -> None:
    torch.manual_seed(0)
    weight, kept = torch.randn(5, 8), torch.tensor([0, 2, 3, 5, 7])
    x = torch.randn(200, 8) @ torch.randn(8, 8)
    seen, held = Moments.empty(8), Moments.empty(8)
    seen.add(x[:150])
    held.add(x[150:])
    for held_out in (None, held):
        found = RECONSTRUCTIONS[name].refit(weight, kept, seen, held_out, damping)
        assert found.weight.shape == (5, 5) and found.weight.dtype == weight.dtype
        assert 0 <= found.error_after <= found.error_before
        everything = RECONSTRUCTIONS[name].refit(weight, torch.arange(8), seen, held_out, damping)
        assert torch.equal(everything.weight, weight) and everything.error_before == everything.error_after == 0


WRITTEN = {
    str: strategies.text(),
    int: strategies.integers(),
    float: strategies.floats(allow_nan=False),
    bool: strategies.booleans(),
    type(None): strategies.none(),
    Pass: strategies.sampled_from([gp.Score("it's; a {b}"), gp.Select(8), Iterative(2, (gp.Score(), gp.Select()))]),
}


def values_of(hint: Any) -> "strategies.SearchStrategy[Any]":
    """Any values of a type that an option of a pass has."""
    if get_origin(hint) is tuple:
        return strategies.lists(values_of(get_args(hint)[0]), max_size=3).map(tuple)
    return strategies.one_of(*(WRITTEN[kind] for kind in get_args(hint) or (hint,)))


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_its_text(name: str) -> None:
    kind, hints = PASSES[name], get_type_hints(PASSES[name])
    assert kind.name == name and (kind.__doc__ or "").strip()
    written = {f.name: values_of(hints[f.name]) for f in fields(kind) if f.repr}

    @settings(max_examples=12, deadline=None, database=None)
    @given(strategies.fixed_dictionaries({}, optional=written))
    def check(options: dict[str, Any]) -> None:
        step = kind(**options)
        assert parse(str(step)) == (step,)
        assert parse(f"analyze,{step} | {step}") == (gp.Analyze(), step, step)

    check()


@pytest.mark.parametrize("destination", ["free", "stock"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_pipeline_of_a_recipe_is_its_text(name: str, destination: str) -> None:
    passes = pipeline_of(
        name, sparsity=0.3, calibration="a text.txt[0:9]", protect=["a*", "b"], destination=destination
    )
    assert Pipeline.parse(str(passes)) == passes


@pytest.mark.parametrize("name", [name for name in RECIPES if cut_first(name) is Drop])
def test_a_recipe_that_drops_blocks_runs(name: str) -> None:
    program = stack()
    smalls = [pipeline_of(name, sparsity=0.3, batches=batches())(program) for _ in range(2)]
    assert smalls[0].count() == pytest.approx(0.7 * program.count(), rel=0.2)
    assert smalls[0].fact(Verification).max_error <= 1e-4
    assert smalls[0].fact(Plan).blocks and smalls[0].fact(Plan).digest == smalls[1].fact(Plan).digest


@cache
def stack() -> Program:
    """A few residual blocks."""
    torch.manual_seed(0)
    return trace(Stack(), (torch.randn(2, 5, 6),))


class Stack(nn.Module):
    """Residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize("name", [name for name in RECIPES if cut_first(name) is AllocateRanks])
def test_a_recipe_that_makes_factors_runs(name: str) -> None:
    smalls = [pipeline_of(name, sparsity=0.3, batches=batches())(network()) for _ in range(2)]
    assert smalls[0].count() == pytest.approx(0.7 * network().count(), rel=0.02)
    assert smalls[0].fact(Verification).max_error <= 1e-4
    assert smalls[0].fact(Plan).ranks and smalls[0].fact(Plan).digest == smalls[1].fact(Plan).digest
    assert all(torch.equal(smalls[0].weights[n], smalls[1].weights[n]) for n in smalls[0].parameters)


@pytest.mark.parametrize("name", [name for name, each in RECIPES.items() if each.score and not of_experts(each.score)])
def test_a_recipe_runs(name: str) -> None:
    program, passes = network(), pipeline_of(name, sparsity=0.3, loss=energy, trials=3, batches=batches())
    with broken_promises() as broken:
        small = passes(program)
    assert broken == [], "every pass reads what it declares, leaves what it promises, and drops nothing else"
    assert small.count() == pytest.approx(0.7 * program.count(), rel=0.02)
    assert small.fact(Verification).max_error <= 1e-4
    again = passes(network())
    assert again.fact(Plan).digest == small.fact(Plan).digest
    assert all(torch.equal(again.weights[n], small.weights[n]) for n in small.fact(Rewritten).keep)
