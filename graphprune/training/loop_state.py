"""State of a training loop that a round must not meet or change: autocast, gradients, compiled code."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from graphprune.execution.module_state import uncompiled


@contextmanager
def quiet_loop(wrapper: nn.Module) -> Iterator[None]:
    """Run the block in full precision, without gradients, by the plain code of the module in `wrapper`.

    Code that torch has compiled for the former shapes is forgotten afterwards: the next call compiles anew.
    """
    with ExitStack() as blocks:
        for block in (*_full_precision(), torch.no_grad(), uncompiled(wrapper)):
            blocks.enter_context(block)
        yield
    parts = [vars(part) for part in wrapper.modules()]
    if any(part.get("_compiled_call_impl") or "_orig_mod" in part.get("_modules", {}) for part in parts):
        torch.compiler.reset()


def _full_precision() -> list[torch.autocast]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [torch.autocast(device, enabled=False) for device in devices]
