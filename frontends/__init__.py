"""Frontends: readers that turn models of one kind into programs."""

from collections.abc import Callable
from dataclasses import dataclass

from graphprune.ir.program import Program
from graphprune.registry import Registry, discover


@dataclass(frozen=True)
class Frontend:
    """Reader for one kind of model: description for users, test whether it accepts a name, and function that loads."""

    description: str
    accepts: Callable[[str], bool]
    load: Callable[[str], Program]


FRONTENDS: Registry[str, Frontend] = Registry("frontend")

discover(__name__, __path__)
