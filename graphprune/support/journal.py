"""Work that goes on where it stopped: one JSON line for every finished step, below a line that names the inputs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphprune.errors import LoadError, because
from graphprune.support.atomic_output import write_durably
from graphprune.support.resume import differences


@dataclass
class Journal:
    """The finished steps of some work; every new one is appended to the file, if there is one, before `add` returns."""

    path: Path | None
    steps: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | None, inputs: Mapping[str, Any]) -> "Journal":
        """Begin a journal, or continue the one that the file holds; None is a journal that nobody keeps.

        A last line that was cut off in the middle is forgotten.

        Raises:
            LoadError: if the file is no journal, or was begun with other inputs.
        """
        if path is None:
            return cls(None)
        found = _whole_lines(path)
        if not found:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, json.dumps({"inputs": dict(inputs)}) + "\n")
            return cls(path)
        first, *steps = _parsed(path, found)
        before = first.get("inputs")
        if other := list(differences(before if isinstance(before, dict) else {}, json.loads(json.dumps(dict(inputs))))):
            raise LoadError(
                f"{path} was begun with other inputs: {'; '.join(other)}. Give the same inputs to go on, delete it to "
                "begin anew, or name another output"
            )
        write_durably(path, "".join(line + "\n" for line in found))
        return cls(path, steps)

    def add(self, **step: Any) -> None:
        """Note a finished step."""
        self.steps.append(step)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(step) + "\n")


def _whole_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    except (OSError, UnicodeDecodeError) as fault:
        raise LoadError(f"cannot read the journal {path}{because(fault)}; delete it, or name another output") from fault


def _parsed(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError) as fault:
            raise LoadError(
                f"{path}, line {number}: got {line[:60]!r}, expected a JSON object; it is no journal of graphprune, "
                "or damaged: delete it to begin anew, or name another output"
            ) from fault
    return found
