"""Callback for the `Trainer` of transformers."""

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from graphprune.errors import TrainingError
from graphprune.execution.wrappers import unwrapped
from graphprune.support import packages

if TYPE_CHECKING:
    from graphprune.training.pruner import Pruner


def make_callback(pruner: "Pruner", every: int | None = None) -> Any:
    """Callback of a pruner: see `Pruner.transformers_callback`.

    Raises:
        PackageError: if transformers is not installed.
    """
    return _kind()(pruner, every)


@cache
def _kind() -> Any:
    base: Any = packages.load("transformers").TrainerCallback

    class PruningCallback(base):  # type: ignore[misc]
        """Adds the penalty to the gradients of every step, and makes a round after `every` steps, or every epoch."""

        def __init__(self, pruner: "Pruner", every: int | None) -> None:
            self.pruner, self.every = pruner, every

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
                           ) -> None:  # fmt: skip
            """Let the optimizer of the trainer follow."""
            require_same(self.pruner, model)
            self.pruner.adopt(optimizer)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Add the gradients of the penalty, once for each step of the optimizer."""
            add_penalty(self.pruner)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Make a round after `every` steps; the trainer clears the gradients after this event."""
            if self.every and not state.global_step % self.every:
                one_round(self.pruner)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Make a round after an epoch."""
            if not self.every:
                one_round(self.pruner)

    return PruningCallback


def require_same(pruner: "Pruner", model: nn.Module | None) -> None:
    """Check that a trainer trains the module of a pruner.

    Raises:
        TrainingError: if it trains another one.
    """
    if model is not None and unwrapped(model) is not pruner.module:
        raise TrainingError(
            f"the trainer trains another {type(model).__name__} than the pruner's {type(pruner.module).__name__}; make "
            "the pruner of the model that is passed to the trainer"
        )


def add_penalty(pruner: "Pruner") -> None:
    """Add the gradients of the penalty to those of the loss."""
    penalty = pruner.penalty()
    if penalty.requires_grad:
        penalty.backward()  # type: ignore[no-untyped-call]


def one_round(pruner: "Pruner") -> None:
    """Make a round, unless all are made."""
    if not pruner.done:
        pruner.step()
