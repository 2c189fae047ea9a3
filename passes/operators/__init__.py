"""Operator rules: one family a file, each rule registered for the operators that it describes."""

from collections.abc import Callable
from typing import Any

from graphprune.contracts import Rule
from graphprune.registry import Registry, discover

RULES: Registry[Any, Rule] = Registry("operator rule")


def rule(*operators: Any) -> Callable[[type[Rule]], type[Rule]]:
    """Register a rule that takes no options for `operators`."""

    def keep(kind: type[Rule]) -> type[Rule]:
        RULES.register(*operators)(kind())
        return kind

    return keep


discover(__name__, __path__)
