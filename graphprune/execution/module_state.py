"""Context managers for capturing and checking modules: evaluation mode, signature, preserved state, quiet exporters."""

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
    """Put a module into evaluation mode for the block, and restore the mode of each submodule afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def named_keywords(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Add the names of keywords that `module.forward` takes as ``**kwargs`` to its signature.

    torch.export binds dynamic sizes to arguments by the signature, and ignores those of other keywords.
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
    """Restore the state of a module after the block: buffers, attributes of submodules, and their dicts and lists.

    Models cache values in such dicts and lists, and torch stores hooks in them.
    """
    parts = [vars(part) for part in module.modules()]
    inside = [value for part in parts for value in part.values()]
    tables = [*parts, *(value for value in inside if isinstance(value, dict))]
    lists = [value for value in inside if isinstance(value, list)]
    before, items = [dict(table) for table in tables], [list(values) for values in lists]
    held = [(tensor, tensor.detach().clone()) for table in before for tensor in table.values() if _is_buffer(tensor)]
    try:
        yield
    finally:
        for table, old in zip(tables, before, strict=True):
            table.clear()
            table.update(old)
        for values, own in zip(lists, items, strict=True):
            values[:] = own
        with torch.no_grad():
            for tensor, numbers in held:
                tensor.copy_(numbers)


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Suppress progress that exporters write to standard output, which belongs to the caller."""
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
    """Seed random numbers in the block: compared models that draw some, to hash or to mask, must draw the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _is_buffer(value: object) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
