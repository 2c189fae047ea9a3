"""Goals are read strictly: every wrong one is an error that says what is right."""

import pytest

from graphprune.errors import OptionError
from graphprune.planning.goals import budget_of, parse, parse_all


@pytest.mark.parametrize(
    ("text", "quantity", "lower", "bound", "relative", "runtime"),
    [
        ("perplexity <= 1.10x", "perplexity", True, 1.1, True, ""),
        ("Perplexity<=110%", "perplexity", True, 1.1, True, ""),
        ("perplexity <= 35", "perplexity", True, 35, False, ""),
        ("accuracy >= 98 %", "accuracy", False, 0.98, False, ""),
        ("accuracy >= 0.98x", "accuracy", False, 0.98, True, ""),
        ("metric <= 0.2", "metric", True, 0.2, False, ""),
        ("metric >= 0.2", "metric", False, 0.2, False, ""),
        ("size <= 100 MB", "size", True, 1e8, False, ""),
        ("size <= 1.5 MiB", "size", True, 1.5 * 2**20, False, ""),
        ("parameters <= 90M", "parameters", True, 9e7, False, ""),
        ("kv <= 50 %", "kv", True, 0.5, True, ""),
        ("latency <= 20 ms on torch", "latency", True, 0.02, False, "torch"),
        ("decode >= 1.5x on onnxruntime", "decode", False, 1.5, True, "onnxruntime"),
        ("decode >= 1.5x", "decode", False, 1.5, True, "onnxruntime"),
    ],
)
def test_a_goal(text: str, quantity: str, lower: bool, bound: float, relative: bool, runtime: str) -> None:
    goal = parse(text)
    assert (goal.quantity, goal.lower, goal.relative, goal.runtime) == (quantity, lower, relative, runtime)
    assert goal.bound == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("small", "is not of the form QUANTITY <= NUMBER UNIT"),
        ("perplexty <= 2", "no quantity 'perplexty'; did you mean perplexity"),
        ("perplexity >= 1.1x", "from the wrong side; write 'perplexity <= 1.1 x'"),
        ("accuracy <= 98 %", "from the wrong side"),
        ("size <= 100 ms", "size has no unit 'ms'; its units are x, %, b, kb"),
        ("size <= 1.2.3 MB", "'1.2.3' is no number"),
        ("size <= 0 MB", "expected a positive number"),
        ("kv <= 120 %", "the dense model meets it"),
        ("decode >= 0.9x", "the dense model meets it; give a factor above 1x"),
        ("accuracy >= 120 %", "at most 100 %"),
        ("perplexity <= 0.5", "a perplexity is at least 1"),
        ("size <= 10 MB on torch", "measured on no runtime"),
        ("decode >= 2x on llama", "one of onnxruntime, got 'llama'"),
    ],
)
def test_a_wrong_goal(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        parse(text)


def test_two_goals_for_one_quantity_are_refused() -> None:
    with pytest.raises(OptionError, match=r"'size <= 1 MB' and 'size <= 50 %' bound one quantity"):
        parse_all(["size <= 1 MB", "size <= 50 %"])


def test_the_budget_of_goals_is_that_of_a_single_cost() -> None:
    assert budget_of(parse_all(["kv <= 50 %", "perplexity <= 2x"])) == "kv_cache"
    assert budget_of(parse_all(["kv <= 50 %", "size <= 50 %"])) == "parameters"
    assert budget_of(parse_all(["perplexity <= 2x"])) == "parameters"
