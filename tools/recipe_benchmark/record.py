"""One line of the file that keeps what was measured."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.json_lines import append as append
from tools.json_lines import tables

DENSE = "dense"


@dataclass(frozen=True)
class Run:
    """A recipe at a sparsity; of the dense model the sparsity is 0. `samples` windows of `length` tokens calibrate."""

    recipe: str
    sparsity: float
    samples: int
    length: int
    seed: int = 0


@dataclass
class Record:
    """Result of a run; `fault` is the one-line reason of a run without one.

    `perplexity` by text, `right` lists which questions were answered correctly, by set (length-normalized). `macs` are
    those of a token in a window of `length`, `cache` the bytes of keys and values a token in half precision, `seconds`
    those of the whole pipeline, and `memory` the most that its process held, in bytes.
    """

    run: Run
    fault: str = ""
    parameters: int = 0
    removed: float = 0.0
    macs: int = 0
    cache: int = 0
    seconds: float = 0.0
    memory: int = 0
    perplexity: dict[str, float] = field(default_factory=dict)
    right: dict[str, list[bool]] = field(default_factory=dict)


def read(path: Path) -> Iterator[Record]:
    """The records of a file."""
    for table in tables(path):
        yield Record(**{**table, "run": Run(**table["run"])})
