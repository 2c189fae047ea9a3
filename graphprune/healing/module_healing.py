"""Healing of a module in place, on batches of the user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.errors import OptionError
from graphprune.healing.data.user_examples import identity_of_batches, user_source
from graphprune.healing.early_checks import require_hidden_states
from graphprune.healing.heal_options import HealOptions
from graphprune.healing.healing_record import Healing, record
from graphprune.healing.models import LoadedModel
from graphprune.healing.training_run import aim_of, train
from graphprune.statistics.batch_inputs import described
from graphprune.support import distributed
from graphprune.support.resume import resumable
from graphprune.support.workspace import Workspace
from graphprune.workflows.runs.run_record import identity_of

FOLDER = "module.run"  # in the scratch folder

log = logging.getLogger("graphprune.run")


def heal_module(options: HealOptions, module: nn.Module) -> Healing:
    """Train the pruned module of some options in place; after an error it is as before.

    Raises:
        OptionError: if an option needs a folder.
        CalibrationError: if the module does not take the batches, or a loss is not finite.
    """
    teacher = options.teacher
    for name in ("output", "evaluate", "checkpointing"):
        if getattr(options, name):
            raise OptionError(f"{name} needs a folder as the pruned model; a module is trained in place: omit {name}")
    if teacher is module:
        raise OptionError("the teacher is the pruned module itself; copy the module before it is pruned")
    if isinstance(teacher, str | Path):
        teacher = LoadedModel.teacher(teacher).module
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise OptionError(f"teacher is {described(teacher)}, expected a module, a folder or a name of the hub")
    if aim_of(options) == "hidden":
        require_hidden_states(module, teacher)
    source = user_source(options, module, teacher)
    with (
        _resumed(options, module) as workspace,
        _restored_after_errors(module), _settings_of(module), _settings_of(teacher),
    ):  # fmt: skip
        outcome = train(options, module, teacher, source, workspace)
    if not source.counts[1]:
        log.warning("no validation batches: the weights of the last step are the result, and nothing was measured")
    return record(options, aim_of(options), outcome, source.steps, source.examples.unit, source.counts)


def identity_in_memory(options: HealOptions, module: nn.Module) -> dict[str, Any]:
    """Identity of a run on batches."""
    teacher = None if isinstance(options.teacher, nn.Module) else options.teacher
    plain = replace(options, pruned="", data=(), teacher=teacher, loss=None, forward=None, validation=None)
    read = [name for name in (options.pruned, teacher) if isinstance(name, str | Path)]
    known = {**identity_of(plain, read), "processes": distributed.world_size()}
    return {**known, **identity_of_batches(options, module)}


@contextmanager
def _resumed(options: HealOptions, module: nn.Module) -> Iterator[Workspace | None]:
    """Workspace of a training of a module, in which a killed one continues; None without a folder for it."""
    if options.scratch is None:
        yield None
        return
    with resumable(Path(options.scratch) / FOLDER, identity_in_memory(options, module), options.restart) as workspace:
        yield workspace


@contextmanager
def _restored_after_errors(module: nn.Module) -> Iterator[None]:
    """Restore parameters and buffers if the block fails."""
    before = {name: tensor.detach().clone() for name, tensor in _tensors(module)}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, tensor in _tensors(module):
                tensor.copy_(before[name])
                tensor.grad = None
        raise


@contextmanager
def _settings_of(module: nn.Module | None) -> Iterator[None]:
    """Restore the mode, the device and the trained parameters of a module after the block."""
    if module is None:
        yield
        return
    modes = [(part, part.training) for part in module.modules()]
    trained = [(weight, weight.requires_grad) for weight in module.parameters()]
    device = next((weight.device for weight, _ in trained), torch.device("cpu"))
    try:
        yield
    finally:
        module.to(device)
        for part, training in modes:
            part.training = training
        for weight, requires_grad in trained:
            weight.requires_grad_(requires_grad)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
