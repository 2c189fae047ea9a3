"""Methods of Torch-Pruning 1.6, with the settings of its own benchmark (benchmarks/main.py).

The ratio of channels that removes the requested share of multiply-accumulates is found by bisection on copies.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from graphprune.training.schedules import cubic
from tools.peer_benchmark.networks import EXAMPLE, macs
from tools.peer_benchmark.training import Batch, Training, loss, sgd
from tools.peer_benchmark.vision_transformer import SmallVisionTransformer

PACKAGE = "torch_pruning"
HALVINGS = 10
REG, DELTA = 5e-4, 1e-4  # the defaults of its benchmark
SCOPES = {"each layer": False, "all layers": True}
METHODS = ("Magnitude", "GroupNorm", "GrowingReg", "BNScale", "Taylor")
REGULARIZED = ("GroupNorm", "GrowingReg", "BNScale")
NAMES = tuple(f"{method}, {scope}" for method in METHODS for scope in SCOPES)


def available() -> bool:
    """Whether the package is installed."""
    try:
        import_module(PACKAGE)
    except ImportError:
        return False
    return True


def parts(name: str) -> tuple[Any, Callable[..., Any], bool]:
    """Importance of a method, its pruner without the module, and whether one threshold serves all layers."""
    tp: Any = import_module(PACKAGE)
    method, _, scope = name.partition(", ")
    importance, pruner = tp.importance, tp.pruner
    table: dict[str, tuple[Any, Callable[..., Any]]] = {
        "Magnitude": (importance.GroupMagnitudeImportance(p=2), pruner.BasePruner),
        "GroupNorm": (
            importance.GroupMagnitudeImportance(p=2, normalizer="max"),
            partial(pruner.GroupNormPruner, reg=REG),
        ),
        "GrowingReg": (
            importance.GroupMagnitudeImportance(p=2),
            partial(pruner.GrowingRegPruner, reg=REG, delta_reg=DELTA),
        ),
        "BNScale": (importance.BNScaleImportance(), partial(pruner.BNScalePruner, reg=REG)),
        "Taylor": (importance.GroupTaylorImportance(), pruner.BasePruner),
    }
    return *table[method], SCOPES[scope]


def made(name: str, model: nn.Module, ratio: float) -> Any:
    """Pruner of a model."""
    importance, pruner, whole = parts(name)
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]  # the last one has the classes
    return pruner(
        model, torch.zeros(EXAMPLE), importance=importance, global_pruning=whole, pruning_ratio=ratio,
        ignored_layers=linear[-1:], in_channel_groups={}, out_channel_groups={}, **hints(model),
    )  # fmt: skip


def hints(model: nn.Module) -> dict[str, Any]:
    """Further arguments that a network needs."""
    return model.hints() if isinstance(model, SmallVisionTransformer) else {"num_heads": {}}


@dataclass
class Cutter:
    """Cuts of one method; `calls` are batches for gradients."""

    name: str
    calls: Sequence[Batch]
    whole: int
    regularizer: Any = field(default=None)

    def cut(self, model: nn.Module, share: float) -> None:
        """Remove channels of a model in place, so that it has lost a share of the multiply-accumulates of the whole."""
        low, high, model_gradients = 0.0, 1.0, self._gradients(model)
        for _ in range(HALVINGS):
            middle, trial = (low + high) / 2, copy.deepcopy(model)
            self._step(trial, middle, model_gradients)
            low, high = (low, middle) if macs(trial) <= (1 - share) * self.whole else (middle, high)
        self._step(model, high, model_gradients)

    def in_training(self, model: nn.Module, share: float, rounds: int, training: Training) -> nn.Module:
        """Train a model with the regularizer of the method, and cut after each of the first epochs."""
        regularizes = self.name.startswith(REGULARIZED)
        self.regularizer = made(self.name, model, 0.5) if regularizes else None

        def cut_after(epoch: int, optimizer: Any) -> Any:
            if hasattr(self.regularizer, "update_reg"):
                self.regularizer.update_reg()
            if epoch >= rounds:
                return optimizer
            self.cut(model, share * cubic((epoch + 1) / rounds))
            self.regularizer = made(self.name, model, 0.5) if regularizes and epoch + 1 < rounds else None
            return sgd(model)

        def regularize() -> None:
            if self.regularizer is not None:
                self.regularizer.regularize(model)

        own = Training(
            training.data, training.epochs, training.seed, training.rate, on_gradients=regularize, on_epoch=cut_after
        )
        return own.run(model)

    def _step(self, model: nn.Module, ratio: float, gradients: dict[str, torch.Tensor]) -> None:
        model.eval()
        for name, weight in model.named_parameters():
            weight.grad = gradients[name].clone() if name in gradients else None
        made(self.name, model, ratio).step()
        model.zero_grad()

    def _gradients(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Gradients of the loss on the batches, where the method needs some."""
        if not self.name.startswith("Taylor"):
            return {}
        model.eval()
        model.zero_grad()
        for batch in self.calls:
            (loss(model(batch[0]), batch) / len(self.calls)).backward()  # type: ignore[no-untyped-call]
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
