"""Random weights in which every value of a parameter occurs once, so that a kept entry is known by its value."""

import zlib

import torch
from torch import Tensor, nn

DEFAULT_SPREAD = 0.05  # half the range of a vector that is constant, as biases of a new layer are
DEFAULT_SCALE = 0.02  # the deviation of a matrix whose own is no use


def seed_of(name: str, extra: int = 0) -> int:
    """A seed that depends on a name only."""
    return (zlib.crc32(name.encode()) + extra) % 2**31


@torch.no_grad()
def refill(model: nn.Module, seed: int) -> nn.Module:
    """Give every floating-point parameter distinct values in the scale of its own initialisation, in place.

    Norms and biases get values that are neither one nor zero, so that a bias or a norm that a cut forgets shows.
    """
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    for layer in model.modules():
        for leaf, tensor in layer._parameters.items():
            if tensor is None or id(tensor) in seen or not tensor.is_floating_point() or not tensor.numel():
                continue
            seen.add(id(tensor))
            _fill(tensor, *_range(layer, leaf, tensor), generator)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            assert layer.running_var is not None
            _fill(layer.running_mean, -0.1, 0.1, generator)
            _fill(layer.running_var, 0.8, 1.2, generator)
    return model


def _fill(tensor: Tensor, low: float, high: float, generator: torch.Generator) -> None:
    """Fill with a permutation of an even grid."""
    size = tensor.numel()
    places = (torch.randperm(size, generator=generator).double() + 0.5) / size
    tensor.copy_((low + (high - low) * places).reshape(tensor.shape).to(tensor.dtype))


def _range(layer: nn.Module, leaf: str, tensor: Tensor) -> tuple[float, float]:
    """The lowest and the highest value for a parameter."""
    if tensor.dim() > 1:
        return _matrix_range(tensor)
    is_scale = leaf == "weight" or "scale" in leaf or "gamma" in leaf
    if is_scale and "norm" in type(layer).__name__.lower():
        return 0.8, 1.2
    finite = bool(torch.isfinite(tensor).all())
    middle = float(tensor.float().mean()) if finite else 0.0
    spread = float(tensor.float().std()) if finite and tensor.numel() > 1 else 0.0
    spread = spread if spread > 1e-6 else DEFAULT_SPREAD
    return middle - spread, middle + spread


def _matrix_range(tensor: Tensor) -> tuple[float, float]:
    """Around zero, with the deviation of the initialisation; around its mean where that is far from zero."""
    scale = float(tensor.float().std()) if torch.isfinite(tensor).all() else DEFAULT_SCALE
    scale = scale if 1e-8 < scale < 1e6 else DEFAULT_SCALE
    mean = float(tensor.float().mean())
    middle = mean if abs(mean) > 3 * scale else 0.0
    return middle - scale * 1.7, middle + scale * 1.7
