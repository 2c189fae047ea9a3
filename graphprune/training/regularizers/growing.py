"""Growing regularization (GReg-1, arXiv:2012.09243): weight decay of what will be cut, which grows with every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.training.coupled_weights import CoupledWeights
from graphprune.training.regularizers import REGULARIZERS, Regularizer


@REGULARIZERS.register("growing")
@dataclass
class Growing(Regularizer):
    """``strength / 2 * ||w_i||^2`` for the indices that the next round removes; `strength` grows by `rate` a step.

    It grows up to `ceiling`, and starts again after every round.
    """

    selects: ClassVar[bool] = True
    strength: float = 0.0
    rate: float = 1e-4
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        self._start = self.strength

    def penalty(self, weights: CoupledWeights) -> Tensor:
        """Penalty of the indices that will be removed."""
        self.strength = min(self.strength + self.rate, self.ceiling)
        marked = [group for group in weights.groups if group.name in weights.removed]
        parts = [(weights.energy(group) * weights.removed[group.name]).sum() for group in marked]
        return self.strength / 2 * torch.stack([weights.zero, *parts]).sum()

    def next_round(self) -> None:
        """Start from the first strength."""
        self.strength = self._start

    def state(self) -> Mapping[str, float]:
        """The current strength."""
        return {"strength": self.strength}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from a strength."""
        self.strength = state["strength"]
