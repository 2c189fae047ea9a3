"""Updates of weights of a low rank, which are trained and then merged (LoRA, arXiv:2106.09685)."""

import torch
from torch import Tensor, nn


class LowRankUpdate(nn.Module):
    """Parametrization of a weight by the weight and an update ``B A`` of a low rank, zero at first."""

    def __init__(self, weight: Tensor, rank: int, seed: int) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        generator = torch.Generator().manual_seed(seed)
        right = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.right = nn.Parameter(right.to(weight))
        self.left = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Weight with its update."""
        return weight + (self.left @ self.right).view_as(weight)
