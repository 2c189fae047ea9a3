"""Frontends: everything that becomes a program."""

from collections.abc import Callable
from dataclasses import dataclass

from graphprune.ir.program import Program
from graphprune.registry import Registry, discover


@dataclass(frozen=True)
class Frontend:
    """A kind of thing that can be loaded: how a user would call it, how to tell it, and how to read it."""

    what: str
    accepts: Callable[[str], bool]
    load: Callable[[str], Program]


FRONTENDS: Registry[str, Frontend] = Registry("frontend")

discover(__name__, __path__)
