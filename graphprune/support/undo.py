"""Assignments that can be taken back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Undo:
    """Assignments that can be taken back."""

    steps: list[Callable[[], None]] = field(default_factory=list)

    def set_item(self, table: dict[Any, Any], key: Any, value: object) -> None:
        """Set an entry of a table; the attributes of an object are one, too, without its own ideas of setting them."""
        old = table[key]
        self.steps.append(lambda: table.__setitem__(key, old))
        table[key] = value

    def rollback(self, to: int = 0) -> None:
        """Take assignments back, the last first."""
        while len(self.steps) > to:
            self.steps.pop()()
