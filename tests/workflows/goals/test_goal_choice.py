"""Choice among trials: shares that cannot be removed bound the search, and quantized models compete with cut ones."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from graphprune.errors import PlanError
from graphprune.planning.goals import parse_all
from graphprune.statistics.paired import PairedSamples
from graphprune.workflows.goals.goal_choice import Choice, smallest
from graphprune.workflows.goals.goal_measures import Reading
from graphprune.workflows.goals.goal_outcome import ShareTrial
from graphprune.workflows.goals.share_search import PlanCurve

MOST = 0.42


@dataclass
class Model:
    """A model whose perplexity grows with the share, and by a factor in int8; it stands in for trials."""

    growth: float
    int8: float = 1.02
    done: dict[float, ShareTrial] = field(default_factory=dict)
    curve: PlanCurve = field(default_factory=lambda: PlanCurve([0.0, 0.95], [0.0, 0.95]))

    def trial(self, share: float) -> ShareTrial:
        if share > MOST:
            raise PlanError(f"{share} is more than can be removed")
        ratio, size = 1 + self.growth * share**2, 100 * (1 - share)
        values = {"perplexity": ratio, "size": size, "perplexity in int8": ratio * self.int8, "size in int8": size / 4}
        dense = {"perplexity": 1.0, "size": 100.0, "perplexity in int8": 1.0, "size in int8": 100.0}
        readings = {n: Reading(PairedSamples.exact(dense[n]), PairedSamples.exact(v)) for n, v in values.items()}
        self.done[share] = ShareTrial(share, readings)
        return self.done[share]


def chosen(model: Any, *goals: str) -> float:
    return Choice(model, parse_all(goals)).share()


def test_the_greatest_share_within_a_perplexity() -> None:
    assert chosen(Model(1.0), "perplexity <= 1.09x") == pytest.approx(0.3, abs=0.011)


def test_a_share_that_cannot_be_removed_bounds_the_search() -> None:
    assert MOST - 0.011 < chosen(Model(0.01), "perplexity <= 1.5x") <= MOST


@pytest.mark.parametrize(
    ("int8", "growth", "quant", "share"),
    [(1.02, 1.0, "int8", 0.26), (1.02, 1000.0, "int8", 0.0), (2.0, 1.0, "none", 0.3)],
)
def test_the_smallest_of_cut_and_quantized(int8: float, growth: float, quant: str, share: float) -> None:
    model: Any = Model(growth, int8)
    best, stored, sizes = smallest(model, parse_all(["perplexity <= 1.09x"]), "int8")
    assert stored == quant and best == pytest.approx(share, abs=0.012)
    assert list(sizes) == ["cut", "int8", "cut and int8"]
    assert (sizes["int8"] is None) == (int8 > 1.09)


def test_a_goal_that_neither_reaches_names_the_quantized_model() -> None:
    model: Any = Model(1e9, 2.0)
    with pytest.raises(PlanError, match="cut or quantized: in int8 without a cut, perplexity is 2x"):
        smallest(model, parse_all(["perplexity <= 1.09x"]), "int8")
