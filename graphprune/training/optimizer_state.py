"""Optimizers of a training loop: they hold parameters of the module, and no gradient is pending at a cut."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from graphprune.errors import TrainingError


def unwrapped_optimizers(optimizer: Any) -> tuple[Optimizer, ...]:
    """The optimizers, without wrappers such as that of accelerate.

    Raises:
        TrainingError: if one is none.
    """
    several = tuple(optimizer) if isinstance(optimizer, list | tuple) else () if optimizer is None else (optimizer,)
    inner = tuple(getattr(one, "optimizer", one) for one in several)
    for one in inner:
        if not isinstance(one, Optimizer):
            raise TrainingError(f"optimizer is a {type(one).__name__}, expected one of torch.optim, or several")
    return inner


def require_own(optimizers: Sequence[Optimizer], module: nn.Module) -> None:
    """Check that optimizers train parameters of this module, and those of others only together with all of its own.

    Raises:
        TrainingError: if one does not.
    """
    own = {id(parameter) for parameter in module.parameters()}
    held_by_any = _held(optimizers)
    whole = all(id(parameter) in held_by_any for parameter in module.parameters() if parameter.requires_grad)
    for one in optimizers:
        held = [p for group in one.param_groups for p in group["params"]]
        foreign = [tuple(p.shape) for p in held if id(p) not in own]
        if foreign and not (whole and len(foreign) < len(held)):
            raise TrainingError(
                f"{type(one).__name__} trains {len(foreign)} of {len(held)} parameters that "
                f"{type(module).__name__} does not have (the first has shape {foreign[0]}): it is the optimizer of "
                "another model, or was made before the module was replaced; make it from this module's parameters()"
            )


def _held(optimizers: Sequence[Optimizer]) -> set[int]:
    """Identities of the parameters of optimizers."""
    return {id(parameter) for one in optimizers for group in one.param_groups for parameter in group["params"]}


class PendingGradients:
    """Record of the gradients that optimizers have applied, by which others are pending."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.applied: dict[int, tuple[Tensor, int]] = {}
        self.optimizers = optimizers
        self._hooks = [one.register_step_post_hook(self._record) for one in optimizers]
        self.listeners: list[Callable[[], None]] = []

    def _record(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.applied[id(parameter)] = parameter.grad, parameter.grad._version
        for listener in self.listeners:
            listener()

    def require_none(self, module: nn.Module) -> None:
        """Check that no gradient awaits a step, as in the middle of an accumulation.

        Gradients of parameters that no optimizer holds await none.

        Raises:
            TrainingError: if one does.
        """
        held = _held(self.optimizers)
        for name, parameter in module.named_parameters():
            grad = parameter.grad if id(parameter) in held else None
            if grad is None or self._is_applied(parameter, grad) or not bool(grad.count_nonzero()):
                continue
            raise TrainingError(
                f"the gradient of {name} was not applied yet: call pruner.step() after optimizer.step() (and "
                "zero_grad()), not in the middle of an accumulation"
            )

    def _is_applied(self, parameter: Tensor, grad: Tensor) -> bool:
        known = self.applied.get(id(parameter))
        return known is not None and known[0] is grad and known[1] == grad._version

    def forget(self) -> None:
        """Forget the gradients of former parameters."""
        self.applied.clear()

    def close(self) -> None:
        """Stop recording."""
        for hook in self._hooks:
            hook.remove()
