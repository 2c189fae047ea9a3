"""Weights that are trained: all, updates of a low rank, or norms and biases."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from graphprune.errors import OptionError
from graphprune.solvers.low_rank_update import LowRankUpdate


@dataclass(frozen=True)
class TrainedWeights:
    """Parameters of a module that are trained, and buffers that training changes; both by name."""

    module: nn.Module
    updated: tuple[tuple[nn.Module, str], ...]
    frozen: tuple[nn.Parameter, ...]

    @classmethod
    def choose(cls, module: nn.Module, scope: str, rank: int, seed: int) -> "TrainedWeights":
        """Choose among the parameters that require gradients, and freeze the others.

        Args:
            module: The module.
            scope: ``all``, ``lora`` (also norms and biases) or ``norms`` (and biases).
            rank: Rank of the updates.
            seed: Seed of their first values.

        Raises:
            OptionError: if there is nothing to train.
        """
        known = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        chosen = {name for name, weight in known.items() if scope == "all" or weight.dim() == 1}
        layers = list(_layers(module)) if scope == "lora" else []
        if not chosen and not layers:
            raise OptionError(
                f"the model has no parameters to train with train={scope!r}; use train='all'"
                if known
                else "all parameters of the model are frozen: set requires_grad of those to train"
            )
        frozen = tuple(weight for name, weight in known.items() if name not in chosen)
        for weight in frozen:
            weight.requires_grad_(False)
        for number, (owner, name) in enumerate(layers):
            update = LowRankUpdate(getattr(owner, name), rank, seed + number)
            parametrize.register_parametrization(owner, name, update)
        return cls(module, tuple(layers), frozen)

    def parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained."""
        return [weight for weight in self.module.parameters() if weight.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """Copies of trained parameters and of all buffers, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._tensors()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Set them to the values of `state`."""
        with torch.no_grad():
            for name, tensor in self._tensors():
                tensor.copy_(state[name])

    def merge(self) -> None:
        """Add updates to their weights, and make frozen parameters trainable again."""
        for owner, name in self.updated:
            parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
        for weight in self.frozen:
            weight.requires_grad_(True)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, weight) for name, weight in self.module.named_parameters() if weight.requires_grad)
        yield from self.module.named_buffers()


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Weights of two or more dimensions of linear layers and convolutions that no other layer shares."""
    tables = set(_tables(module))
    readers: dict[int, int] = {}
    for _, weight in module.named_parameters(remove_duplicate=False):
        readers[id(weight)] = readers.get(id(weight), 0) + 1
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if (
                weight.requires_grad
                and weight.dim() in (2, 4)
                and readers[id(weight)] == 1
                and id(weight) not in tables
            ):
                yield part, name


def _tables(module: nn.Module) -> Iterator[int]:
    """Identities of weights whose rows are looked up."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            yield id(part.weight)
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                if node.op == "get_attr" and any("embedding" in str(user.target) for user in node.users):
                    yield id(_attribute(part, str(node.target)))


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def without_dropout(module: nn.Module) -> None:
    """Set all rates of dropout to 0, also those that a forward reads from attributes or from a configuration."""
    for part in module.modules():
        for holder in (part, getattr(part, "config", None)):
            for name, value in list(vars(holder).items()) if holder is not None else ():
                if isinstance(value, float) and ("drop" in name or (name == "p" and "Dropout" in type(part).__name__)):
                    setattr(holder, name, 0.0)
