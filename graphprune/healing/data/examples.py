"""Examples to train on, in batches, and those that are held out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

IGNORED = -100  # the label of what is not predicted


@dataclass(frozen=True)
class Batch:
    """Inputs of a call by name, or the batch of a user's data; and the labels at the logits.

    `labels` are tokens, shape (rows, predicted), or classes, shape (rows,); `IGNORED` ones do not count. `tokens` is
    the number that progress counts. `keys` name the examples under which the teacher's predictions are stored; there
    are none where an example differs each time.
    """

    inputs: Any
    labels: Tensor | None
    tokens: int
    keys: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """Batch on a device."""
        if not isinstance(self.inputs, Mapping) or device.type == "cpu":
            return self
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, None if self.labels is None else self.labels.to(device), self.tokens, self.keys)


class Examples(Protocol):
    """Source of batches, the same ones whenever it starts at the same step."""

    @property
    def unit(self) -> str:
        """Name of what `Batch.tokens` counts."""

    def steps(self, start: int, share: range) -> Iterator[list[Batch]]:
        """Endless batches of each step from `start` on, in the parts that run one after the other.

        `share` has the index of this process and the number of processes, as in ``range(index, count)``.
        """

    def held_out(self) -> Iterator[Batch]:
        """Held-out batches, always the same ones."""

    def output(self, model: nn.Module, batch: Batch, **options: Any) -> Any:
        """Output of a model on a batch; `options` are further keywords of the call."""


@dataclass(frozen=True)
class Order:
    """Endless order of `training` examples: a permutation by `seed` for every pass over them."""

    training: Sequence[int]
    seed: int
    _known: dict[int, list[int]] = field(default_factory=dict, repr=False, compare=False)

    def positions(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Examples at these positions of the order, each with the number of the pass."""
        for position in range(start, end):
            turn, at = divmod(position, len(self.training))
            yield self.training[self._permutation(turn)[at]], turn

    def _permutation(self, turn: int) -> list[int]:
        if turn not in self._known:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            self._known.clear()
            self._known[turn] = torch.randperm(len(self.training), generator=generator).tolist()
        return self._known[turn]
