"""Callback for the `Trainer` of Lightning, which is no dependency."""

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from graphprune.errors import PackageError
from graphprune.support import packages
from graphprune.training.callbacks.transformers_callback import add_penalty, one_round

if TYPE_CHECKING:
    from graphprune.training.pruner import Pruner

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def make_callback(pruner: "Pruner", every: int | None = None) -> Any:
    """Callback of a pruner: see `Pruner.lightning_callback`.

    Raises:
        PackageError: if Lightning is not installed.
    """
    return _kind()(pruner, every)


@cache
def _kind() -> Any:
    package = next((name for name in PACKAGES if find_spec(name.partition(".")[0]) is not None), None)
    if package is None:
        raise PackageError("Lightning is not installed: pip install lightning")
    base: Any = packages.load(package).Callback

    class LightningPruning(base):  # type: ignore[misc]
        """Adds the penalty to the gradients of every step, and makes a round after `every` steps, or every epoch."""

        def __init__(self, pruner: "Pruner", every: int | None) -> None:
            self.pruner, self.every = pruner, every

        def on_train_start(self, trainer: Any, module: Any) -> None:
            """Let the optimizers of the trainer follow."""
            self.pruner.adopt(trainer.optimizers)

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            """Add the gradients of the penalty, once for each step of the first optimizer."""
            if optimizer is trainer.optimizers[0]:
                add_penalty(self.pruner)

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            """Make a round after `every` steps."""
            if self.every and trainer.global_step and not trainer.global_step % self.every:
                one_round(self.pruner)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            """Make a round after an epoch."""
            if not self.every:
                one_round(self.pruner)

    return LightningPruning
