"""Numbers and their colors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.display.color_scale import SHADES, ColorScale

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1)


def luminance(color: str) -> float:
    """The relative luminance of a color, as the guidelines for accessible content define it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("make", [ColorScale.linear, ColorScale.of_rises])
@given(numbers=NUMBERS)
def test_shades_rise_with_the_numbers(make: type[ColorScale], numbers: list[float]) -> None:
    scale = make(numbers)  # type: ignore[call-arg, arg-type]
    places = [scale.place(number) for number in sorted(numbers)]
    assert places == sorted(places) and places[0] >= 0 and places[-1] < len(SHADES)


def test_ends_have_the_first_and_the_last_shade() -> None:
    assert [ColorScale.linear([2, 3, 4]).place(n) for n in (2, 3, 4, 5)] == [0, 4, 7, 7]
    scale = ColorScale.of_rises([-1, 1e-9, 0.01, 1])
    assert (scale.low, scale.high) == (1e-3, 1)
    assert [scale.place(n) for n in (-1, 0, 1e-9, 0.032, 1)] == [0, 0, 0, 4, 7]
    assert ColorScale.linear([]).place(0) == ColorScale.linear([7]).place(7) == ColorScale.of_rises([]).place(0) == 0


def test_neighbors_with_equal_logarithms_have_the_ends() -> None:
    numbers = (999999.9999999999, 1e6)
    scale = ColorScale.of_rises(numbers)
    assert scale.low < scale.high and [scale.place(n) for n in numbers] == [0, 7]


def test_text_can_be_read_on_every_shade() -> None:
    scale = ColorScale(0, len(SHADES))
    for i, shade in enumerate(SHADES):
        low, high = sorted((luminance(shade), {"white": 1.0, "black": 0.0}[scale.text(i + 0.5)]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, shade
