"""Noise in the place of weights: a comparison that accepts it sees nothing."""

from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

import graphprune as gp
from graphprune.errors import VerificationError

PASSED = "passed"
REFUSED = "refused"
SEED = 5


def judged_by_proof(program: gp.Program, small: gp.Program, plan: gp.Plan) -> str:
    """What the proof says of a cut program with noise for weights: `PASSED` is a fault of the proof."""
    generator = torch.Generator().manual_seed(SEED)
    weights = {name: _noise(name in small.parameters, tensor, generator) for name, tensor in small.weights.items()}
    try:
        gp.verify(program, replace(small, weights=MappingProxyType(weights)), plan)
    except VerificationError:
        return REFUSED
    return PASSED


def _noise(parameter: bool, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normally distributed numbers as large as a parameter; other tensors as they are."""
    if not parameter or not tensor.is_floating_point():
        return tensor
    scale = tensor.float().square().mean().sqrt()
    return (torch.randn(tensor.shape, generator=generator) * scale).to(tensor.dtype)
