"""Data of a part of a module: what it is called with while the whole runs on the user's data."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphprune.execution.module_state import evaluation_mode, preserved_state
from graphprune.ir.program import Inputs, Program
from graphprune.workflows.module_parts import recorded
from graphprune.workflows.runs.user_run import UserRun


def data_of_part(whole: nn.Module, part: nn.Module, program: Program, run: UserRun) -> dict[str, Any]:
    """Calls of a part while the whole runs on the data, and a loss of its outputs; nothing if no call fits the part.

    The loss is the sum of the products of outputs and their gradients in the dense model, whose gradients by the
    parameters are those of the user's loss.
    """
    loss, calls, slopes = run.for_passes["loss"], list[Inputs](), list[list[Tensor | None]]()
    for number, call in enumerate(run.calls):
        with torch.enable_grad(), evaluation_mode(whole), preserved_state(whole):
            outputs: list[Any] = []

            def forward(call: Any = call, outputs: list[Any] = outputs) -> None:
                outputs.append(whole(*call.args, **call.kwargs))

            inputs, output = recorded(part, forward)
            if inputs is None or program.violation(*inputs) is not None:
                continue
            calls.append(inputs)
            leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
            if loss is not None:
                slopes.append(_slopes(loss(outputs[0], number), leaves))
    if not calls:
        return {}

    def of_part(output: Any, number: int) -> Tensor:
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        terms = [(x * g).sum() for x, g in zip(leaves, slopes[number], strict=True) if g is not None]
        return torch.stack(terms).sum()

    return {"batches": tuple(calls), "loss": of_part if any(map(_depends, slopes)) else None}


def _depends(slopes: Sequence[Tensor | None]) -> bool:
    """Whether the loss depends on an output."""
    return any(slope is not None for slope in slopes)


def _slopes(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    known = [leaf for leaf in leaves if leaf.requires_grad]
    if not known:
        return [None] * len(leaves)
    slopes = iter(torch.autograd.grad(value, known, allow_unused=True))
    return [next(slopes) if leaf.requires_grad else None for leaf in leaves]
