"""Models made by a function of the user: ``package.module:callable``."""

import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from graphprune.errors import LoadError, because
from graphprune.frontends import FRONTENDS, Frontend
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program, Source
from graphprune.support.packages import failed_import

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def load(text: str) -> Program:
    """Call ``package.module:callable``, which returns ``(module, args, kwargs)``, and trace the module.

    Raises:
        LoadError: if there is no such callable, it fails, or returns something else.
        TraceError: if torch.export refuses the module.
    """
    made = _call(text)
    match made:
        case (nn.Module() as module, tuple() | list() as args, Mapping() as kwargs):
            program = trace(module, tuple(args), kwargs)
            return replace(program, source=Source(Path(text), "python"))
    raise LoadError(f"{text} returned {_kinds(made)}, expected (nn.Module, tuple of arguments, dict of keywords)")


def _call(text: str) -> Any:
    build = find(text)
    if not callable(build):
        raise LoadError(f"{text} is a {type(build).__name__}, expected a callable that returns (module, args, kwargs)")
    try:
        return build()
    except Exception as fault:
        raise LoadError(
            f"{text} failed with {type(fault).__name__} when called without arguments{because(fault)}"
        ) from fault


def find(text: str) -> Any:
    """Object of the name ``package.module:name``, importable from the current folder.

    Raises:
        LoadError: if there is none, or its module cannot be imported.
    """
    module, _, name = text.partition(":")
    if str(Path.cwd()) not in sys.path:  # as `python -m` has it, so that the user's own files can be imported
        sys.path.insert(0, str(Path.cwd()))
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ModuleNotFoundError, AttributeError) as fault:
        raise LoadError(
            f"cannot find {text}{because(fault)}; expected package.module:name, importable from this folder"
        ) from fault
    except Exception as fault:  # of the user's code, or of a package that it imports
        raise failed_import(fault) or LoadError(f"cannot import {module}{because(fault)}") from fault
    return value


def _kinds(made: object) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(part).__name__ for part in made)})"
    return f"a {type(made).__name__}"


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and not Path(text).exists()


FRONTENDS.register("python")(Frontend("package.module:callable that returns (module, args, kwargs)", _is_name, load))
