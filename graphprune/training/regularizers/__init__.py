"""Regularizers of coupled groups, which a training loop adds to its loss; one method a file."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from graphprune.errors import TrainingError
from graphprune.registry import Registry, discover
from graphprune.training.coupled_weights import CoupledWeights

REGULARIZERS: "Registry[str, type[Regularizer]]" = Registry("regularizer")


@dataclass
class Regularizer(ABC):
    """Penalty on the coupled weights of a module in training, of this `strength`.

    With `selects`, the indices of the next round are chosen when the penalty is first read after a round, it acts on
    these (`CoupledWeights.removed`), and the round removes them. With `observes`, the moments of the inputs of linear
    layers are gathered then (`CoupledWeights.statistics`).
    """

    selects: ClassVar[bool] = False
    observes: ClassVar[bool] = False
    strength: float

    @abstractmethod
    def penalty(self, weights: CoupledWeights) -> Tensor:
        """Penalty to add to the loss; a scalar with gradients.

        Raises:
            TrainingError: if the method does not apply to the module.
        """

    def quantities(self, weights: CoupledWeights) -> Mapping[str, Tensor]:
        """Quantity that the method acts on, for every index of each group, shape (rows, size): by default, energy."""
        return {group.name: weights.energy(group) for group in weights.groups}

    def mass(self, weights: CoupledWeights) -> float:
        """Share of the `quantities` that the indices to be removed hold."""
        return weights.removed_share(self.quantities(weights))

    def next_round(self) -> None:  # noqa: B027 - most methods have no state
        """Start again after a cut."""

    def state(self) -> Mapping[str, float]:
        """Numbers from which a resumed run continues."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:  # noqa: B027 - most methods have no state
        """Continue from the numbers of `state`."""


def made(regularizer: "str | Regularizer", strength: float | None = None) -> "Regularizer | None":
    """Regularizer of a name, with a strength if there is one; None for an empty name.

    Raises:
        RegistryError: if there is none of this name.
        TrainingError: if it is no regularizer, or the strength is impossible.
    """
    if strength is not None and (not isinstance(strength, int | float) or not strength >= 0):
        raise TrainingError(f"strength must be a number of at least 0, got {strength!r}")
    if isinstance(regularizer, Regularizer):
        return regularizer
    if not regularizer:
        return None
    if not isinstance(regularizer, str):
        raise TrainingError(
            f"regularizer is a {type(regularizer).__name__}, expected a name ({', '.join(REGULARIZERS)}) or an object "
            "of a subclass of graphprune.training.regularizers.Regularizer"
        )
    kind: Any = REGULARIZERS[regularizer]
    return kind() if strength is None else kind(strength=float(strength))  # type: ignore[no-any-return]


discover(__name__, __path__)
