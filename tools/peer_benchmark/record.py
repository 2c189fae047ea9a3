"""Lines of the file that keeps what was measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.json_lines import append as append
from tools.json_lines import tables

DENSE = "dense"
CUT, TRAINED, ITERATIVE = WAYS = ("one shot", "one shot, then training", "iterative, in training")


@dataclass(frozen=True)
class Run:
    """A method that removes a share of the multiply-accumulates of a network; all but the first way train.

    `images` are the numbers of images to train and to test on.
    """

    network: str
    way: str
    method: str
    share: float
    seed: int
    epochs: int
    images: tuple[int, int]


@dataclass(frozen=True)
class Record:
    """Result of a run; `fault` is the one-line reason of a run without one."""

    run: Run
    removed: float = 0.0
    parameters: int = 0
    accuracy: float = 0.0
    untrained: float | None = None
    seconds: float = 0.0
    fault: str = ""


def read(path: Path) -> Iterator[Record]:
    """Records of a file."""
    for table in tables(path):
        run = table.pop("run")
        yield Record(Run(**{**run, "images": tuple(run["images"])}), **table)
