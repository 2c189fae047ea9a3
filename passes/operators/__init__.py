"""Operator rules, one family per file, each registered for the operators that it describes."""

from collections.abc import Callable
from typing import Any

from graphprune.axes.rule import Rule
from graphprune.registry import Registry, discover


class Rules(Registry[Any, Rule]):
    """Rules by operator; operators of packages that may not be loaded are registered by name."""

    def __getitem__(self, name: Any) -> Rule:
        return super().__getitem__(self._key(name))

    def get(self, name: Any, default: Any = None) -> Any:
        """The rule of an operator, or `default`."""
        return super().get(self._key(name), default)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(self._key(name))

    def _key(self, name: Any) -> Any:
        return name if name in self._table else str(name)


RULES = Rules("operator rule")


def rule(*operators: Any) -> Callable[[type[Rule]], type[Rule]]:
    """Register a rule without options for `operators`."""

    def register(kind: type[Rule]) -> type[Rule]:
        RULES.register(*operators)(kind())
        return kind

    return register


discover(__name__, __path__)
