"""The law that every graph obeys: a cut equals the masked original, or there is a clear refusal before it."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ShapesCollection

import graphprune as gp
from graphprune.axes.algebra import primes
from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import TraceError, WriteBackError
from graphprune.execution.cases.fresh_inputs import fresh_inputs
from graphprune.execution.equivalence import mask_program
from graphprune.execution.output_comparison import compare
from graphprune.ir.program import Program
from graphprune.passes.analysis.find_groups import analyze_uncached
from graphprune.planning.index_scores import rows_of
from graphprune.planning.plan import Plan, Rows, make
from tests.fuzz.graphs import Built, build
from tests.fuzz.world import Graph
from tests.streams import assert_streamed

TOLERANCE = 1e-6  # in double precision


@dataclass
class Outcome:
    """What happened to a graph: how many groups there were, whether a cut showed, what was written back."""

    refused: str = ""
    groups: int = 0
    exact: int = 0
    shown: int = 0
    plans: int = 0
    written: int = 0
    not_written: int = 0
    touched: set[str] = field(default_factory=set)


@lru_cache(maxsize=400)
def captured(graph: Graph) -> Program:
    """The program of a graph.

    Raises:
        TraceError: if torch.export refuses it.
    """
    built = build(graph)
    shapes = ShapesCollection() if graph.form == "still" else None  # type: ignore[no-untyped-call]
    return gp.trace(built.module, built.args, built.kwargs, dynamic_shapes=shapes)


def check(graph: Graph, thorough: bool = True) -> Outcome:
    """Cut a graph at random, in several ways, or else in two, and compare.

    Raises:
        AssertionError: if the law is broken; errors of graphprune other than a refusal to trace go on.
    """
    try:
        program = captured(graph)
    except TraceError as fault:
        return Outcome(refused=str(fault))
    found = analyze_uncached(program)
    program = program.with_facts(found)
    outcome = Outcome(groups=len(found.groups), exact=sum(group.maskable for group in found.groups))
    assert_streamed(program)
    random = Random(graph.seed)
    for plan in plans(program, found, random, 4 if thorough else 2):
        small = gp.apply(program, plan)
        assert gp.verify(program, small, plan).max_error <= TOLERANCE
        outcome.plans += 1
        outcome.shown += shows(program, plan)
        outcome.touched |= touched(program, found, plan)
        if thorough or random.random() < 0.3:
            cut_again(small)
        if thorough or random.random() < 0.3:
            written = write_back(small, build(graph), found, plan)
            outcome.written += written
            outcome.not_written += not written
    return outcome


def rows(found: Dependencies, group: Group, random: Random) -> Rows:
    """Random kept indices; where they are linked, mostly other ones in every row."""
    size = max(group.least, random.choice((1, group.size - 1, random.randint(1, group.size))))
    count = rows_of(group, found) if random.random() < 0.8 else 1
    return tuple(tuple(sorted(random.sample(range(group.size), size))) for _ in range(count))


def plans(program: Program, found: Dependencies, random: Random, most: int) -> Iterator[Plan]:
    """Everything that is exact or rescaled, some of it, one group of any kind, everything; `most` of these."""
    exact = [group for group in found.groups if group.maskable]
    every = list(found.groups)
    choices = [exact, random.sample(exact, random.randint(1, len(exact)))] if exact else []
    choices += [[random.choice(every)], every] if len(exact) < len(every) else []
    for groups in random.sample(choices, min(most, len(choices))):
        yield make(program, found, {group.name: rows(found, group, random) for group in groups})


def tensors(output: Any) -> list[Tensor]:
    """The tensors of an output."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


@torch.no_grad()
def shows(program: Program, plan: Plan) -> bool:
    """Does the plan change the numbers?"""
    args, kwargs = program.inputs
    before, after = program.module()(*args, **kwargs), mask_program(program, plan.keep).module()(*args, **kwargs)
    pairs = zip(tensors(before), tensors(after), strict=True)
    return any(not torch.allclose(a.double(), b.double(), rtol=1e-5) for a, b in pairs)


def touched(program: Program, found: Dependencies, plan: Plan) -> set[str]:
    """The operators that met an axis which was cut."""
    cut = {found.by_name[name].prime for name, width in plan.widths.items() if width < found.by_name[name].size}
    names = set()
    for node in program.graph.nodes:
        here = (p for axis in found.axes_of(node.name) for p in primes(axis))
        if node.op == "call_function" and not cut.isdisjoint(here):
            names.add(str(node.target))
    return names


def cut_again(small: Program) -> None:
    """What was cut is a program like any other."""
    again = replace(small, facts={})
    found = analyze_uncached(again)
    again = again.with_facts(found)
    exact = [group for group in found.groups if group.maskable and group.size > 1]
    if exact:
        plan = make(again, found, {group.name: ((0,),) for group in exact})
        assert gp.verify(again, gp.apply(again, plan), plan).max_error <= TOLERANCE


@torch.no_grad()
def write_back(small: Program, built: Built, found: Dependencies, plan: Plan) -> bool:
    """The original module agrees with the cut program afterwards, or is left as it was."""
    module = built.module
    before = module(*built.args, **built.kwargs)
    try:
        small.write_back(module)
    except WriteBackError:
        compare(before, module(*built.args, **built.kwargs), "module after a refusal")
        return False
    args, kwargs = fresh_inputs(small, seed=5)
    compare(small.module()(*args, **kwargs), module(*args, **kwargs), "written-back module", TOLERANCE)
    return True
