"""Rounding that is estimated by changing the last bits of the weights."""

import torch
from torch import Tensor, nn

from graphprune.execution.output_comparison import difference
from graphprune.execution.rounding import estimated


class Boxes(nn.Module):
    """Coordinates that are differences of large numbers, next to small scores, as of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.score = nn.Linear(8, 40), nn.Linear(8, 40)

    def forward(self, x: Tensor) -> Tensor:
        far = 600 + self.left(x)
        return torch.stack((far, far - 600 - self.left.bias, 1e-3 * self.score(x)), 1)


def _output(module: nn.Module) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        output: Tensor = module(torch.randn(4, 8).to(next(module.parameters())))
    return output


def test_the_rounding_of_differences_of_large_numbers_is_no_error() -> None:
    module = Boxes()
    reference, exact = _output(module), _output(module.double()).float()
    module.float()
    assert difference(reference, exact).relative > 1e-4
    (noise,) = estimated(lambda: [_output(module)], [reference])
    assert difference(reference, exact, rounding=noise).relative < 1e-4
    assert difference(reference, exact * 1.001, rounding=noise).relative > 1e-4


class Scores(nn.Module):
    """Probabilities that are far below 1."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 40)

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = (self.score(x) - 12).sigmoid()
        return probabilities


def test_small_results_of_functions_of_range_1_are_exact_to_a_unit_of_1() -> None:
    module = Scores()
    reference = _output(module)
    (noise,) = estimated(lambda: [_output(module)], [reference])
    assert difference(reference, reference + 1e-7).relative > 1e-3
    assert difference(reference, reference + 1e-7, rounding=noise).relative == 0
    assert difference(reference, reference * 1.1, rounding=noise).relative > 1e-3


class Choice(nn.Module):
    """Decided by the last bit of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight * 1.5 > 1.5).float()


def test_a_choice_that_the_last_bit_decides_is_no_rounding() -> None:
    module = Choice()
    (noise,) = estimated(lambda: [_output(module)], [_output(module)])
    assert noise.max() < 1e-4
