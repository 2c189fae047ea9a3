"""Results of one tool on one model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from torch import nn

LATE = "time limit"  # begins the fault of what was not done in time
LEAST = 0.01  # of the parameters: who removed less has not pruned


@dataclass
class Record:
    """One row of the JSON file.

    `stage` is the last one that was begun; "done" if all were. `fault` says in one line why it is not done, and
    `remark` what is worth knowing where it is. `removed` and `free` are shares of the parameters; `free` counts those
    in tensors in which an exact group stands; `padded` those that are gone from the graph but stay in the module that
    was written back, as zeros. `error` is the greatest difference between the pruned and the masked
    original, relative to the greatest reference value; `proven` the same as graphprune's own verification measured it.
    `noise` is what that verification makes of noise in the place of weights, "refused" or "passed". `outcomes` has the
    outcome of every stage of a model of the field family: "ok", or the first line of its failure.
    """

    tool: str
    name: str
    stage: str = "build"
    fault: str = ""
    remark: str = ""
    traceback: str = ""
    mode: str = ""
    parameters: int = 0
    removed: float = 0.0
    free: float = 0.0
    padded: float = 0.0
    nodes: int = 0
    groups: int = 0
    exact_groups: int = 0
    opaque: dict[str, int] = field(default_factory=dict)
    proven: float | None = None
    error: float | None = None
    noise: str = ""
    exact: bool = False
    written_back: bool = False
    passed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Keeps a record up to date, and sends it on at every step, so that a time limit does not lose it."""

    record: Record
    send: Callable[[Record], None]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage; if it raises, the record stays at it."""
        self.record.stage = name
        self.send(self.record)
        start = perf_counter()
        yield
        self.record.seconds[name] = perf_counter() - start
        self.record.passed.append(name)


def count(model: nn.Module) -> int:
    """How many parameters a model has, shared ones counted once."""
    return sum(tensor.numel() for tensor in model.parameters())
