"""Modules as they are captured and checked, for a while: in evaluation mode, every keyword in the signature, without
traces of a run afterwards, and quietly."""

import inspect
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; afterwards each of its parts has its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def named_keywords(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let the signature of `module.forward` name every keyword of a call that it takes as one of ``**kwargs``.

    torch.export binds dynamic sizes to arguments by that signature, and loses those that it does not name.
    """
    signature = inspect.signature(module.forward)
    named = {p.name: p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD}
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names if name not in named]
    if not extra or len(named) == len(signature.parameters):
        yield
        return
    own = vars(module).get("forward")
    forward = module.forward

    def named_forward(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    named_forward.__signature__ = signature.replace(parameters=[*named.values(), *extra])  # type: ignore[attr-defined]
    module.forward = named_forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def preserved_state(module: nn.Module) -> Iterator[None]:
    """Take back what runs write into a module: its buffers, the attributes of its parts, and what lies in the tables
    and lists among these, where some keep what they computed once, and torch keeps hooks."""
    parts = [vars(part) for part in module.modules()]
    inside = [value for part in parts for value in part.values()]
    tables = [*parts, *(value for value in inside if isinstance(value, dict))]
    lists = [value for value in inside if isinstance(value, list)]
    before, items = [dict(table) for table in tables], [list(found) for found in lists]
    held = [(tensor, tensor.detach().clone()) for table in before for tensor in table.values() if _is_buffer(tensor)]
    try:
        yield
    finally:
        for table, old in zip(tables, before, strict=True):
            table.clear()
            table.update(old)
        for found, own in zip(lists, items, strict=True):
            found[:] = own
        with torch.no_grad():
            for tensor, numbers in held:
                tensor.copy_(numbers)


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Exporters write progress to standard output, which belongs to the caller."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Some models draw random numbers, to hash or to mask: what is compared must draw the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _is_buffer(value: object) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
