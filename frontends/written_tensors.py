"""Tensors that a run writes to, copied at the first write and restored afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.frontends.generated_weights import lacks_numbers


@contextmanager
def restored(tensors: Iterable[Tensor], at_once: bool = False) -> Iterator[None]:
    """Restore the numbers of tensors that operators in the block write to, parameters included.

    They are copied `at_once`, or each before the first write to it.
    """
    plain = (t for t in tensors if type(t).__torch_dispatch__ is Tensor.__torch_dispatch__)
    writes = _CopyBeforeWrite([t for t in plain if not lacks_numbers(t) and t.layout is torch.strided])
    try:
        if at_once:
            writes.copy_all()
        with nullcontext() if at_once else writes:
            yield
    finally:
        writes.restore()


class _CopyBeforeWrite(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies the memory of watched tensors before an operator writes to it."""

    def __init__(self, watched: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched = {_memory(tensor): tensor for tensor in watched}
        self.before: dict[int, tuple[Tensor, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, OpOverload) and func._schema.is_mutable:
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and not lacks_numbers(leaf) and leaf.layout is torch.strided:
                    self._copy(leaf)
        return func(*args, **(kwargs or {}))

    def _copy(self, tensor: Tensor) -> None:
        memory = _memory(tensor)
        if memory in self.watched and memory not in self.before:
            storage = self.watched[memory].untyped_storage()
            self.before[memory] = self.watched[memory], storage.clone()  # type: ignore[no-untyped-call]

    def copy_all(self) -> None:
        """Copy all watched tensors."""
        for tensor in self.watched.values():
            self._copy(tensor)

    def restore(self) -> None:
        """Write back what was copied."""
        for tensor, numbers in self.before.values():
            tensor.untyped_storage().copy_(numbers)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
