"""Methods of graphprune: the recipe that it chooses itself, then the common training or its own recovery."""

import copy
from collections.abc import Sequence

from torch import nn

import graphprune as gp
from graphprune.training.schedules import cubic
from tools.peer_benchmark.training import Batch, Loader, Training, loss, sgd

NAMES = ("graphprune", "graphprune, healed")


def cut(model: nn.Module, share: float, calls: Sequence[Batch]) -> nn.Module:
    """Module with a share of its multiply-accumulates removed at once."""
    small: nn.Module = gp.prune(model, data=calls, loss=loss, macs=share, inplace=False).module
    return small


def train(name: str, small: nn.Module, dense: nn.Module, training: Training) -> nn.Module:
    """Train what was cut: as all methods do, or towards the dense model by `graphprune.heal`."""
    if name == NAMES[0]:
        return training.run(small)
    loader = Loader(training.data)
    gp.heal(
        small, teacher=copy.deepcopy(dense), data=loader, aim="outputs", epochs=training.epochs, seed=training.seed,
        rate=2e-3,
    )  # fmt: skip
    return small


def in_training(model: nn.Module, share: float, calls: Sequence[Batch], rounds: int, training: Training) -> nn.Module:
    """Train a module, with a round after each of the first epochs."""
    optimizer = sgd(model)
    pruner = gp.Pruner(
        model, macs=share, rounds=rounds, schedule=cubic, optimizer=optimizer, data=calls, loss=loss,
        seed=training.seed,
    )  # fmt: skip

    def round_after(epoch: int, current: object) -> object:
        if not pruner.done:
            pruner.step()
        return current

    own = Training(
        training.data, training.epochs, training.seed, training.rate, penalty=pruner.penalty, on_epoch=round_after
    )
    return own.run(model, optimizer)
