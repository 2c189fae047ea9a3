"""Context managers for capturing and checking modules: evaluation mode, signature, preserved state, quiet exporters."""

import copy
import inspect
import io
import logging
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import nn

from graphprune.execution.object_state import ObjectState

MIXED = "_original_forward"  # the attribute in which accelerate keeps the forward that it has put into autocast


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for the block, and restore the mode of each submodule afterwards.

    A module that is in evaluation mode already is not touched.
    """
    modes = [(vars(part), part.training) for part in module.modules()]
    if not any(training for _, training in modes):
        yield
        return
    own = any(type(part).train is not nn.Module.train for part in module.modules())
    before = module.training
    if own:
        module.train(False)
    for attributes, _ in modes if not own else ():  # a module may forbid setting attributes
        attributes["training"] = False
    try:
        yield
    finally:
        if own:  # such a method may do more than set the mode
            module.train(before)
        for attributes, training in modes:
            attributes["training"] = training


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
    vars(module)["forward"] = named_forward  # a module may forbid setting attributes
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


@contextmanager
def preserved_state(module: nn.Module) -> Iterator[ObjectState]:
    """Restore the state of a module after the block: buffers, attributes, and all that they hold (see `ObjectState`).

    Models cache values in dicts, lists and objects, and torch stores hooks in them.
    """
    state = ObjectState([module])
    try:
        yield state
    finally:
        state.restore()


@contextmanager
def restored_on_failure(*roots: object) -> Iterator[None]:
    """Give everything that `roots` reach the state that it had, classes of layers included, if the block fails."""
    state = ObjectState(roots)
    kinds = [(part, type(part)) for root in roots if isinstance(root, nn.Module) for part in root.modules()]
    try:
        yield
    except BaseException:
        for part, kind in kinds:
            if type(part) is not kind:
                part.__class__ = kind
        state.restore()
        raise


@contextmanager
def attributes_restored_on_failure(*owners: object) -> Iterator[None]:
    """Give objects the attributes that they had, and the items of lists and dicts among these, if the block fails.

    Unlike `restored_on_failure`, it leaves what the attributes hold, such as graphs and data.
    """
    held = [attributes for owner in owners if (attributes := getattr(owner, "__dict__", None)) is not None]
    before = [dict(attributes) for attributes in held]
    items = [(value, copy.copy(value)) for of in before for value in of.values() if type(value) in (dict, list)]
    try:
        yield
    except BaseException:
        for attributes, known in zip(held, before, strict=True):
            attributes.clear()
            attributes.update(known)
        for value, known in items:
            value.clear()
            value.extend(known) if isinstance(value, list) else value.update(known)
        raise


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Run the plain code of submodules that `Module.compile` has compiled, or that accelerate has put into autocast."""
    every = [vars(part) for part in module.modules()]
    compiled = [(attributes, call) for attributes in every if (call := attributes.get("_compiled_call_impl"))]
    mixed = [(attributes, attributes["forward"]) for attributes in every if {MIXED, "forward"} <= attributes.keys()]
    for attributes, _ in compiled:
        attributes["_compiled_call_impl"] = None
    for attributes, _ in mixed:
        del attributes["forward"]
    try:
        yield
    finally:
        for attributes, call in compiled:
            attributes["_compiled_call_impl"] = call
        for attributes, forward in mixed:
            attributes["forward"] = forward


@contextmanager
def eager_branches() -> Iterator[None]:
    """Tell code that asks torch whether it is being compiled or exported that it is not."""
    names = ("is_compiling", "is_dynamo_compiling", "is_exporting")
    known = {name: getattr(torch.compiler, name) for name in names}
    for name in names:
        setattr(torch.compiler, name, lambda: False)
    try:
        yield
    finally:
        for name, function in known.items():
            setattr(torch.compiler, name, function)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Turn off torch's fast path of its own transformer layers, which returns zeros for padded positions.

    Exports never take it.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


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
    """Seed random numbers of torch, Python and NumPy in the block, and restore their states afterwards.

    Compared models that draw some, to hash or to mask, must draw the same.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
