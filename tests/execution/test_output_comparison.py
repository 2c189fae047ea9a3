"""No entry of an output hides another, and rounding at the size of a mark is no difference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphprune.errors import VerificationError
from graphprune.execution.output_comparison import compare, difference, is_informative

LOWEST = torch.finfo(torch.float32).min


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def marked(x: Tensor, mark: float) -> Tensor:
    return x.masked_fill(torch.tensor([0, 0, 1, 0, 1]).bool(), mark)


def added(x: Tensor, mark: float) -> Tensor:
    return x + torch.tensor([0, 0, mark, 0, mark])


@pytest.mark.parametrize("mark", [LOWEST, -torch.inf, torch.nan, -1e9, 1e4])
@pytest.mark.parametrize("put", [marked, added])
def test_marks_hide_no_difference(put: Callable[[Tensor, float], Tensor], mark: float) -> None:
    right = values(6, 5)
    assert difference(put(right, mark), put(right * (1 + 1e-6), mark)).relative < 1e-5
    assert difference(put(right, mark), put(right * 1.001, mark)).relative > 5e-4


@pytest.mark.parametrize("slice", [(2,), (slice(None), 2)])
def test_a_large_row_or_column_hides_no_other(slice: object) -> None:
    right = values(6, 8)
    right[slice] *= 1e6  # type: ignore[index]
    wrong = right.clone()
    wrong[0, 0] += 0.01
    assert difference(right, wrong).relative > 5e-3


def test_most_entries_may_be_masked() -> None:
    scores, mask = values(50, 40), -1e9 * (values(50, 40, seed=1) > -1.3)
    assert (mask < 0).double().mean() > 0.85
    assert difference(scores + mask, scores * (1 + 1e-6) + mask).relative < 1e-5
    assert difference(scores + mask, scores * 1.001 + mask).relative > 5e-4


def test_a_large_constant_hides_no_variation() -> None:
    right = values(6, 5)
    found = difference(1000 + 1e-3 * right.double(), 1000 + 1e-3 * values(6, 5, seed=1).double())
    assert found.relative < 1e-4 < 0.5 < found.spread


@pytest.mark.parametrize("other", [[1.0, 2.0, -torch.inf], [1.0, torch.nan, torch.inf], [-torch.inf, torch.nan, 3.0]])
def test_a_mark_on_one_side_is_a_difference(other: list[float]) -> None:
    with pytest.raises(VerificationError, match="it, output 0: it holds numbers that are not finite"):
        compare(torch.tensor([1.0, torch.nan, -torch.inf]), torch.tensor(other), "it")


def test_integers_differ_or_not() -> None:
    assert difference(torch.tensor([100_000, 3]), torch.tensor([100_001, 3])).relative == 1.0
    assert difference(torch.tensor([True]), torch.tensor([True])).relative == 0.0
    assert difference(torch.zeros(0, 3), torch.zeros(0, 3)).relative == 0.0


def test_complex_numbers_have_two_parts() -> None:
    right = torch.complex(values(4, 5), values(4, 5, seed=1))
    wrong = torch.complex(right.real, right.imag * 1.001)
    assert 5e-4 < difference(right, wrong).relative < 2e-3


def test_rounding_of_small_values_is_measured() -> None:
    right, wrong = torch.full((6,), 1e-17).double(), torch.tensor([1e-17, -1e-17] * 3).double()
    assert difference(right, wrong).relative > 0.5
    assert difference(right, wrong, rounding=torch.full((6,), 1e-15)).relative == 0.0


def test_an_output_that_shows_nothing_is_named() -> None:
    assert compare([torch.zeros(3), values(3)], [torch.zeros(3), values(3)], "it").blind == ("output 0",)
    assert [is_informative(t) for t in (torch.full((2,), -torch.inf), torch.zeros(1), torch.ones(1))] == [0, 0, 1]


def test_large_outputs_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.execution.output_comparison.CHUNK", 16)
    right = values(4, 3, 5)
    wrong = right.clone()
    wrong[3, 2, 4] += 0.1
    assert difference(right, wrong).absolute == pytest.approx(0.1)


def test_one_output_more_is_a_difference() -> None:
    with pytest.raises(VerificationError, match="it: they have 1 and 2 outputs"):
        compare([values(2)], [values(2), values(2)], "it")
