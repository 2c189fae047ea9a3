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
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            blocks.enter_context(torch.autocast(device, enabled=False))
        blocks.enter_context(torch.no_grad())
        blocks.enter_context(uncompiled(wrapper))
        yield
    parts = [vars(part) for part in wrapper.modules()]
    if any(part.get("_compiled_call_impl") or "_orig_mod" in part.get("_modules", {}) for part in parts):
        torch.compiler.reset()
