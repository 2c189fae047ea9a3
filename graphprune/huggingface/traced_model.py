"""Models of transformers in traced modules: their configuration, and how a saved folder is loaded in their place."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError
from graphprune.huggingface.layer_removal import shorten_config
from graphprune.huggingface.meta_models import class_name, describe, flat, is_model, on_meta
from graphprune.ir.program import Program, Traced

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


def of(module: nn.Module) -> Traced | None:
    """The one model of transformers that a module is or holds; None if there is none, or more than one."""
    models = outermost(module)
    if len(models) != 1:
        return None
    ((path, model),) = models.items()
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    whole = _without_weights(module) if path else None
    return Traced(f"{path}." if path else "", named_config(model), dtypes[0] if dtypes else torch.float32, whole)


def outermost(module: nn.Module) -> dict[str, PreTrainedModel]:
    """Models of transformers in a module by their paths, without those inside others."""
    models = {path: part for path, part in module.named_modules() if is_model(part)}
    return {
        path: model
        for path, model in models.items()
        if not any(path != other and (not other or path.startswith(f"{other}.")) for other in models)
    }


def named_config(model: PreTrainedModel) -> PreTrainedConfig:
    """A copy of the configuration of a model that names its class."""
    config: PreTrainedConfig = copy.deepcopy(model.config)
    config.architectures = [class_name(type(model))]
    return config


def settings(traced: Traced) -> PreTrainedConfig:
    """The configuration of the model, without the blocks dropped since.

    Raises:
        ExportError: if no field of it sets the number of blocks.
    """
    dropped = [name.removeprefix(traced.prefix) for name in traced.dropped]
    config: PreTrainedConfig = copy.deepcopy(traced.settings)
    return shorten_config(config, dropped) if dropped else config


def foreign(traced: Traced, program: Program) -> str | None:
    """The first parameter of the model that its class does not have, such as that of an adapter; None if there is none.

    Raises:
        ExportError: if its class cannot be built from its configuration.
    """
    known = describe(on_meta(flat(settings(traced)))).shapes
    own = (name.removeprefix(traced.prefix) for name in sorted(program.parameters) if name.startswith(traced.prefix))
    return next((name for name in own if name not in known), None)


def inserted(traced: Traced, model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The traced module with another model in the place of its own; other buffers come from `weights`.

    Raises:
        ExportError: if the traced module could not be copied.
    """
    if not traced.prefix:
        return model
    path = traced.prefix.removesuffix(".")
    if traced.whole is None:
        raise ExportError(
            f"the module that holds the {type(model).__name__} at {path} cannot be copied, so that the saved folder "
            f"cannot be checked; trace {path} itself, or use destination free"
        )
    whole = copy.deepcopy(traced.whole)
    whole.set_submodule(path, model)
    for name, buffer in whole.named_buffers():
        if buffer.is_meta:
            owner, _, key = name.rpartition(".")
            whole.get_submodule(owner).register_buffer(key, weights[name])
    return whole.eval()


def _without_weights(module: nn.Module) -> nn.Module | None:
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    memo: dict[int, Any] = {key: _on_meta(tensor) for key, tensor in tensors.items()}
    try:
        return copy.deepcopy(module, memo)
    except Exception as fault:  # a module may hold anything, such as a lock
        log.info("%s cannot be copied: %s", type(module).__name__, fault)
        return None


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
