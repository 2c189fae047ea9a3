"""Rounding of weights to the blocks of 4 bits that exporters store, each error compensated by the columns after it.

GPTQ (arXiv:2210.17323): column by column, the rounding error is moved to the columns that are not rounded yet, so that
the outputs on calibration inputs change least. A block retains its greatest and least values, from which exporters
compute its scale; so they store the rounded weights without a further error.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.solvers.normal_equations import damped_cholesky

BLOCK = 32  # columns that share a scale
DAMPING = 1e-2  # of the mean of the diagonal
TOP = 15  # the greatest level of 4 bits
NOWHERE = -1  # column of a row without a pinned one


@dataclass(frozen=True)
class Levels:
    """Values that the rows of a block can have: ``(level - zero) scale`` for levels from 0 to 15.

    `scale` and `zero` have shape (rows,). `pins` are columns, shape (rows,), with the level that they must have.
    """

    scale: Tensor
    zero: Tensor
    pins: tuple[tuple[Tensor, int], ...]

    def nearest(self, values: Tensor, column: int) -> Tensor:
        """Values of a column, shape (rows,), at the nearest level, or at that where they are pinned."""
        levels = (values / self.scale + self.zero).round().clamp(0, TOP)
        for columns, level in self.pins:
            levels = torch.where(columns == column, level, levels)
        return (levels - self.zero) * self.scale


def with_zero_point(block: Tensor) -> Levels:
    """Levels of a block, shape (rows, columns), from its least to its greatest value: int4 of ONNX."""
    low, high = block.amin(1).clamp(max=0), block.amax(1).clamp(min=0)
    scale = (high - low).clamp(min=1e-12) / TOP
    least = torch.where(low < 0, block.argmin(1), NOWHERE)
    greatest = torch.where(high > 0, block.argmax(1), NOWHERE)
    return Levels(scale, (-low / scale).round(), ((least, 0), (greatest, TOP)))


def symmetric(block: Tensor) -> Levels:
    """Levels of a block, shape (rows, columns), around zero; its farthest value has the first one: Q4_0 of GGUF."""
    farthest = block.abs().argmax(1)
    scale = (block.gather(1, farthest[:, None])[:, 0] / -8).half().to(block)
    scale = torch.where(scale == 0, torch.finfo(torch.half).tiny, scale)
    return Levels(scale, torch.full_like(scale, 8), ((torch.where(block.any(1), farthest, NOWHERE), 0),))


#: Levels of a block, by the name of the format.
FORMATS: dict[str, Callable[[Tensor], Levels]] = {"int4": with_zero_point, "q4_0": symmetric}


def inverse_root(gram: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of a damped Gram matrix of inputs, shape (n, n)."""
    root = damped_cholesky(gram.double(), DAMPING * float(gram.diagonal().mean()))
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(root), upper=True)
    return upper


def compensated(weight: Tensor, upper: Tensor, levels: Callable[[Tensor], Levels]) -> Tensor:
    """Rounded weight of shape (m, n), for inputs with this `inverse_root`, shape (n, n)."""
    w = weight.double().clone()
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        made, errors = levels(w[:, start:end].float()), w.new_zeros(len(w), end - start)
        for i in range(start, end):
            value = made.nearest(w[:, i].float(), i - start).double()
            errors[:, i - start] = (w[:, i] - value) / upper[i, i]
            w[:, i + 1 : end] -= errors[:, i - start, None] * upper[i, i + 1 : end]
            w[:, i] = value
        w[:, end:] -= errors @ upper[start:end, end:]
    return w.to(weight.dtype)


def to_nearest(weight: Tensor, levels: Callable[[Tensor], Levels]) -> Tensor:
    """Weight of shape (m, n) with every value at the nearest level."""
    blocks = [block.float() for block in torch.split(weight, BLOCK, 1)]
    columns = [
        made.nearest(block[:, i], i) for block in blocks for made in [levels(block)] for i in range(block.shape[1])
    ]
    return torch.stack(columns, 1).to(weight.dtype)


def output_change(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    """Norm of the change of the outputs by a rounded weight, relative to their norm."""
    energies = [float(((w @ gram) * w).sum()) for w in (weight.double() - rounded.double(), weight.double())]
    share: float = (max(energies[0], 0.0) / max(energies[1], torch.finfo(torch.float64).tiny)) ** 0.5
    return share
