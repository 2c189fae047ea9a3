"""Log of assignments that can be undone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_MISSING = object()


@dataclass
class Undo:
    """Log of assignments that can be undone."""

    steps: list[Callable[[], None]] = field(default_factory=list)

    def set_item(self, table: dict[Any, Any], key: Any, value: object) -> None:
        """Set an entry of a table, such as the attribute dictionary of an object, which bypasses its `__setattr__`."""
        old = table.get(key, _MISSING)
        self.steps.append(lambda: table.pop(key) if old is _MISSING else table.__setitem__(key, old))
        table[key] = value

    def set_class(self, instance: object, kind: type) -> None:
        """Change the class of an object."""
        old = type(instance)
        self.steps.append(lambda: setattr(instance, "__class__", old))
        instance.__class__ = kind

    def rollback(self, to: int = 0) -> None:
        """Undo assignments after the first `to`, last first."""
        while len(self.steps) > to:
            self.steps.pop()()
