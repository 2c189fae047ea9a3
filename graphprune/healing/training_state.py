"""State of an unfinished training: weights, moments of the optimizer, the curve; stored in the workspace of the run."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from graphprune.errors import WorkspaceError, because
from graphprune.support.atomic_output import sync, write_durably
from graphprune.support.workspace import Workspace, without_shared_memory, writable

TABLE = "training.json"
log = logging.getLogger("graphprune.run")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Measurement:
    """Measurement during training: losses are means; `rate` is the learning rate of the last step."""

    step: int
    tokens: int
    train_loss: float | None
    held_out_loss: float | None
    rate: float


@dataclass(frozen=True)
class Progress:
    """Position of a training: finished steps, tokens, seconds, the curve, and the step of the best weights."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: tuple[Measurement, ...] = ()
    best: int = 0
    lowest: float | None = None
    waited: int = 0

    def measured(self, point: Measurement) -> "Progress":
        """Position after a measurement."""
        loss, curve = point.held_out_loss, (*self.curve, point)
        better = loss is None or self.lowest is None or loss < self.lowest
        if better:
            return replace(self, curve=curve, best=point.step, lowest=loss, waited=0)
        return replace(self, curve=curve, waited=self.waited + 1)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "Progress":
        """Position in a table of JSON."""
        return cls(**{**table, "curve": tuple(Measurement(**point) for point in table["curve"])})


@dataclass(frozen=True)
class Snapshot:
    """All that a training continues from."""

    progress: Progress
    weights: Tensors
    best: Tensors
    moments: Tensors = field(default_factory=dict)


def moments_of(optimizer: Optimizer) -> Tensors:
    """Tensors of the state of an optimizer, by the position of the parameter and their name."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, of in state.items() for name, value in of.items()}


def set_moments(optimizer: Optimizer, moments: Tensors) -> None:
    """Set the state of an optimizer to these tensors."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        position, _, name = key.partition(".")
        state.setdefault(int(position), {})[name] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def store(workspace: Workspace, snapshot: Snapshot) -> None:
    """Store a snapshot; until it is complete, and after a kill, the earlier one is read.

    Raises:
        WorkspaceError: if it cannot be written.
    """
    parts = {"weights": snapshot.weights, "best": snapshot.best, "moments": snapshot.moments}
    tensors = {f"{part}/{name}": value for part, of in parts.items() for name, value in of.items()}
    path = workspace.folder / f"training-{snapshot.progress.step:08d}.safetensors"
    with writable(workspace.folder):
        save_file(without_shared_memory({name: tensor.detach().cpu() for name, tensor in tensors.items()}), path)
        sync(path)
        write_durably(workspace.folder / TABLE, json.dumps({"file": path.name, **asdict(snapshot.progress)}))
        for old in workspace.folder.glob("training-*.safetensors"):
            if old != path:
                old.unlink()
    workspace.finished += 1


def restore(folder: Path) -> Snapshot | None:
    """Stored snapshot of an unfinished training; None if there is none.

    Raises:
        WorkspaceError: if it is damaged.
    """
    path = folder / TABLE
    if not path.is_file():
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / table.pop("file"))
        parts: dict[str, Tensors] = {"weights": {}, "best": {}, "moments": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        progress = Progress.of(table)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
        raise WorkspaceError(f"{path} is damaged{because(fault)}; pass --restart to start over") from fault
    log.info("continuing after step %d", progress.step)
    return Snapshot(progress, **parts)
