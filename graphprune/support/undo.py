"""Log of assignments that can be undone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Undo:
    """Log of assignments that can be undone."""

    steps: list[Callable[[], None]] = field(default_factory=list)

    def set_item(self, table: dict[Any, Any], key: Any, value: object) -> None:
        """Set an entry of a table, such as the attribute dictionary of an object, which bypasses its `__setattr__`."""
        old = table[key]
        self.steps.append(lambda: table.__setitem__(key, old))
        table[key] = value

    def rollback(self, to: int = 0) -> None:
        """Undo assignments after the first `to`, last first."""
        while len(self.steps) > to:
            self.steps.pop()()
