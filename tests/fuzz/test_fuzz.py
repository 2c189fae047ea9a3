"""Random graphs, cut at random: the law holds for all of them, and catches a rule that is made wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, seed, settings

from graphprune.axes.algebra import Prime
from graphprune.axes.rule import OpCall
from graphprune.passes.analysis import find_groups
from graphprune.passes.analysis.axis_flow import AxisFlow
from graphprune.passes.operators import RULES
from graphprune.passes.operators.linear import Linear
from graphprune.passes.operators.norms import RMSNorm
from graphprune.passes.operators.shapes import Permute, Reshape
from graphprune.passes.operators.splitting import Slice
from tests.fuzz.graphs import graphs
from tests.fuzz.law import Outcome, check
from tests.fuzz.world import Graph

QUIET = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
QUICK = settings(QUIET, max_examples=20, derandomize=True)
LONG = settings(QUIET, max_examples=500)


def outcomes(most: int, options: settings, number: int | None = None) -> list[Outcome]:
    """What came of many graphs of up to `most` steps: the same few cuts of each, or more of them from a seed."""
    found: list[Outcome] = []

    @options
    @given(graphs(most=most))
    def run(graph: Graph) -> None:
        found.append(check(graph, thorough=number is not None))

    (run if number is None else seed(number)(run))()
    return found


def assert_that_it_bites(found: list[Outcome]) -> None:
    """Most graphs have something exact to cut, most cuts show, and most modules can follow."""
    traced = [one for one in found if not one.refused]
    written, refused = sum(one.written for one in traced), sum(one.not_written for one in traced)
    assert len(traced) >= 0.9 * len(found)
    assert sum(one.exact > 0 for one in traced) >= 0.6 * len(traced)
    assert sum(one.shown for one in traced) >= 0.8 * sum(one.plans for one in traced)
    assert written >= 0.5 * (written + refused)


def test_cuts_of_random_graphs_equal_zeroing() -> None:
    assert_that_it_bites(outcomes(8, QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))  # workers share them
def test_cuts_of_thousands_of_random_graphs_equal_zeroing(part: int) -> None:
    number = SystemRandom().randrange(10**9)
    print(f"part {part}, seed {number}")  # noqa: T201 - shown if it fails
    found = outcomes(24, LONG, number)
    assert_that_it_bites(found)
    touched = set().union(*(one.touched for one in found))
    assert len(touched & {str(target) for target in RULES}) >= 50, sorted(touched)


@dataclass(frozen=True)
class Mutation:
    """A mistake in a rule, and operations among which it shows."""

    name: str
    thing: Any
    attribute: str
    wrong: Any
    operations: tuple[str, ...]
    seed: int = 0  # with which a guilty graph comes early


def silent(*_: Any) -> None:
    """Says nothing."""


def unordered(self: Any, flow: Any, node: Any) -> Any:
    """Axes keep their places where a transposition does not show in the sizes."""
    dims = flow.dims(node.args[0])
    turned = tuple(dims[i] for i in self.permutation(node, len(dims)))
    return dims if [a.size for a in dims] == [a.size for a in turned] else turned


def one(*_: Any) -> float:
    """Nothing becomes greater."""
    return 1.0


def untied(self: Any, flow: Any, node: Any) -> Any:
    """The columns of a weight are not those of its input."""
    return *flow.dims(node.args[0])[:-1], flow.dims(node.args[1])[0]


def all_quiet(flow: AxisFlow, rules: Any) -> Iterator[tuple[Prime, str]]:
    """Whatever is masked stays zero."""
    return iter(())


def as_it_was(self: Any, cut: Any, node: Any) -> OpCall:
    """Literals stay as they are."""
    return OpCall(node.target, node.args, dict(node.kwargs))


PLAIN = [
    Mutation("normalised axes are exact", AxisFlow, "mark_inexact", silent, ("softmax", "norm", "linear")),
    Mutation("nothing is pinned", AxisFlow, "pin", silent, ("along", "segment")),
    Mutation("weights are not tied to inputs", Linear, "axes", untied, ("linear", "unary")),
    Mutation("views keep their sizes", Reshape, "rebuild", as_it_was, ("unflatten", "flatten", "linear")),
]
HIDDEN = [
    Mutation("averages are sums", AxisFlow, "average", silent, ("reduce", "norm", "linear"), seed=6),
    Mutation("narrower norms are as they were", RMSNorm, "gain", one, ("norm", "linear"), seed=1),
    Mutation("all numbers are zero", find_groups, "inexact", all_quiet, ("reduce", "unary")),
    Mutation("sums are not noted", AxisFlow, "contract", silent, ("reduce", "unary")),
    Mutation("heads need not agree", AxisFlow, "share_selection", silent, ("unflatten", "flatten", "pairs")),
    Mutation("squares are symmetric", Permute, "axes", unordered, ("permute", "linear_along", "add")),
    Mutation("slices keep their bounds", Slice, "rebuild", as_it_was, ("segment", "halves", "linear")),
]


def breaks(graph: Graph) -> bool:
    """Is the law broken?"""
    try:
        check(graph)
    except Exception:  # a wrong rule may fail in any way
        return True
    return False


def assert_caught(mutation: Mutation, monkeypatch: pytest.MonkeyPatch, within: int) -> None:
    """Among so many graphs is one for which the wrong rule breaks the law, and the right one does not."""
    options = settings(QUIET, max_examples=within, phases=[Phase.generate])
    with monkeypatch.context() as patched:
        patched.setattr(mutation.thing, mutation.attribute, mutation.wrong)
        guilty = find(graphs(*mutation.operations, most=6), breaks, settings=options, random=Random(mutation.seed))
    assert not breaks(guilty)


def named(mutation: Mutation) -> str:
    """Its name, for pytest."""
    return mutation.name.replace(" ", "-")


@pytest.mark.parametrize("mutation", PLAIN, ids=named)
def test_the_law_catches_wrong_rules(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(mutation, monkeypatch, within=60)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", HIDDEN, ids=named)
def test_the_law_catches_rules_that_are_seldom_wrong(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(mutation, monkeypatch, within=1000)
