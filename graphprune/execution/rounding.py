"""Rounding errors of a computation, estimated by changes of the last bits where there is no wider type."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OPERATIONS = 8  # other orders of the same sums round up to so many times as far
#: Functions of range 1, which kernels may compute to a unit in the last place of 1: their small results are less exact.
BOUNDED = {torch.ops.aten.sigmoid.default, torch.ops.aten.tanh.default, torch.ops.aten._softmax.default}
GREATEST = 64  # roundings of the largest output or range: a choice that the last bit decides is no rounding


def estimated(
    run: Callable[[], Sequence[Tensor]], reference: Sequence[Tensor], greatest: float = GREATEST
) -> list[Tensor]:
    """Rounding of each entry of the `reference` outputs, which `run` gives; at most `greatest` of the largest output.

    It is run once more, with the result of every operation multiplied by 1 plus or minus half a unit in the last place
    (random perturbation, the CESTAC method of stochastic arithmetic).
    """
    with torch.no_grad(), _Perturbed() as mode:
        again = run()
    return [_limited(a, b, mode.range, greatest) for a, b in zip(reference, again, strict=True)]


class _Perturbed(TorchDispatchMode):
    """Mode in which the results of operations are rounded up or down at random."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(0)
        self.range = 0.0  # of the bounded functions that were run

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation; results that share memory with its arguments are as they are."""
        result = func(*args, **(kwargs or {}))
        if any(returned.alias_info is not None for returned in func._schema.returns):
            return result
        least = 1.0 if func in BOUNDED else 0.0
        self.range = max(self.range, least)
        return pytree.tree_map_only(Tensor, lambda tensor: self._perturbed(tensor, least), result)

    def _perturbed(self, tensor: Tensor, least: float) -> Tensor:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=self.generator).to(tensor) * 2 - 1
        return tensor + tensor.abs().clamp(min=least) * signs * (torch.finfo(tensor.dtype).eps / 2)


def _limited(reference: Tensor, again: Tensor, least: float, greatest: float) -> Tensor:
    if not reference.is_floating_point() or reference.shape != again.shape:
        return torch.zeros(reference.shape)
    finite = reference.abs().nan_to_num(0.0, 0.0)
    most = max(least, float(finite.max()) if finite.numel() else 0.0)
    apart = (reference - again).abs().nan_to_num(0.0, 0.0)
    return (OPERATIONS * apart).clamp(max=greatest * torch.finfo(reference.dtype).eps * most if most else 0.0)
