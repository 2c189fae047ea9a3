"""Rows of tokens that stand for removed ones: means by frequency."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MeanRows:
    """Removed tokens by the retained token that their spelling begins with, all by their old identifiers.

    `counts` are the frequencies of all tokens in a corpus.
    """

    first: Mapping[int, int]
    counts: Mapping[int, int]

    @property
    def changed(self) -> set[int]:
        """Tokens whose rows change."""
        return set(self.first.values())

    def applied(self, tensor: Tensor, dim: int) -> Tensor:
        """A tensor with the indices of dimension `dim` of first tokens at the mean of their own and of removed ones."""
        if not self.first:
            return tensor
        every = tensor.movedim(dim, 0)
        removed = torch.tensor(list(self.first))
        targets, place = torch.unique(torch.tensor(list(self.first.values())), return_inverse=True)
        shape = [-1] + [1] * (every.dim() - 1)
        own, others = self._weights(targets).clamp(min=1.0), self._weights(removed)
        sums = every[targets].float() * own.view(shape)
        sums.index_add_(0, place, every[removed].float() * others.view(shape))
        mean = sums / own.index_add(0, place, others).view(shape)
        return every.index_copy(0, targets, mean.to(tensor.dtype)).movedim(0, dim)

    def _weights(self, numbers: Tensor) -> Tensor:
        return torch.tensor([float(self.counts.get(number, 0)) for number in numbers.tolist()])


def mean_rows(
    tokenizer: Any, reduced: Any, retained: Mapping[int, int], counts: Mapping[int, int], rows: int
) -> MeanRows:
    """Means for the removed tokens of a corpus, whose text the tokenizer `reduced` spells anew."""
    old = {new: number for number, new in retained.items()}
    first: dict[int, int] = {}
    for number in counts.keys() - retained.keys():
        text = tokenizer.backend_tokenizer.id_to_token(number)
        pieces = reduced.model.tokenize(text)
        if pieces and number < rows and old[pieces[0].id] < rows:
            first[number] = old[pieces[0].id]
    return MeanRows(first, counts)
