"""Checks before a training, which would otherwise fail in its middle or at its end."""

import inspect
from collections.abc import Iterable

import torch
from torch import nn

from graphprune.errors import CalibrationError, OptionError, because
from graphprune.healing.models import LoadedModel
from graphprune.ir.program import Inputs


def require_device(name: str) -> None:
    """Check that a device is there.

    Raises:
        OptionError: if it is not.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as fault:
        raise OptionError(f"there is no device {name!r} here{because(fault)}") from fault


def require_hidden_states(*modules: nn.Module | None) -> None:
    """Check that modules can return hidden states.

    Raises:
        OptionError: if one cannot.
    """
    for one in modules:
        known = {} if one is None else inspect.signature(one.forward).parameters
        if known and "output_hidden_states" not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            raise OptionError(
                f"aim='hidden' needs a forward that takes output_hidden_states, as models of transformers do, and that "
                f"of {type(one).__name__} does not; use aim='logits' or 'outputs'"
            )


@torch.no_grad()
def require_running(inputs: Inputs, models: Iterable[tuple[str, LoadedModel]]) -> None:
    """Run models, each with its role in messages, on the longest texts and the greatest token of the data.

    Raises:
        CalibrationError: if one fails, as where it has fewer positions or tokens.
    """
    args, kwargs = inputs
    for role, model in models:
        try:
            model.module(*args, **kwargs)
        except Exception as fault:  # code of a model may raise anything
            ids = next(kwargs[name] for name in ("input_ids", *kwargs) if name in kwargs)
            raise CalibrationError(
                f"{role} {model.folder} does not run on texts of {ids.shape[1]} tokens, of which the greatest is "
                f"{int(ids.max())}{because(fault)}; choose shorter windows (length), or see that the tokenizer belongs "
                "to the model"
            ) from fault
