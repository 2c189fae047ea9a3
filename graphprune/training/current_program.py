"""Program of a module that was trained since its capture: the same graph with the module's current numbers."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from graphprune.errors import TrainingError
from graphprune.huggingface import traced_model
from graphprune.ir.program import Program

NO_FACTS: Mapping[type, object] = MappingProxyType({})


def refreshed(program: Program, module: nn.Module) -> Program:
    """The program without facts, and with the current weights and buffers of the module, which it shares.

    Raises:
        TrainingError: if a tensor of the module has another shape or type than in the graph, or is not finite.
    """
    weights = {name: held(module, name) for name in program.weights}
    current = {name: program.weights[name] if tensor is None else tensor for name, tensor in weights.items()}
    _require_same(program, module, current)
    for name in sorted(program.parameters & current.keys()):
        if not bool(torch.isfinite(current[name]).all()):
            raise TrainingError(
                f"{name} holds NaN or infinity, so that the training has diverged; return to a checkpoint, and lower "
                "the learning rate or the penalty"
            )
    return replace(program, weights=MappingProxyType(current), facts=NO_FACTS)


def reconfigured(program: Program, module: nn.Module) -> Program:
    """The program with the current configuration of a model of transformers that the module is or holds."""
    return replace(program, traced=traced_model.of(module)) if program.traced else program


@torch.no_grad()
def held(module: nn.Module, name: str) -> Tensor | None:
    """Tensor of a module by the name of its capture, as its forward sees it; None for a constant of the graph."""
    path, _, leaf = name.rpartition(".")
    try:
        value = getattr(module.get_submodule(path), leaf)
    except AttributeError:
        return None
    return value.detach() if isinstance(value, Tensor) else None


def _require_same(program: Program, module: nn.Module, current: Mapping[str, Tensor]) -> None:
    """Check that the module has the shapes and types of the graph, which a user may have changed since."""
    values = {program.name(str(node.target)): node.meta["val"] for node in program.tensors()}
    for name, value in values.items():
        tensor = current.get(name)
        expected = tuple(int(size) for size in value.shape), value.dtype
        if tensor is None or (tuple(tensor.shape), tensor.dtype) != expected:
            got = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)} and {tensor.dtype}"
            raise TrainingError(
                f"{name} of {type(module).__name__} has changed since the last round: expected shape {expected[0]} and "
                f"{expected[1]}, got {got}; only the pruner may change shapes and types: make a new pruner"
            )
