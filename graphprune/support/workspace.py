"""A folder of plain files in which a run keeps the activations of its samples, and what it has finished.

Inside `within`, what is too large lies in memory-mapped files, whose pages the system drops when memory is short.
Outside of it everything is held in memory. See `steps` for how a run that was killed goes on.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any
from weakref import WeakSet

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graphprune.errors import WorkspaceError, because

SUMS_PREFIX = "sums-"
MEMORY_BYTES = 1 << 30  # bytes of activations that stay in memory where nobody sets a limit


@dataclass
class Workspace:
    """Where the files of one run lie.

    Activations beyond `hold` bytes lie in files, and sums over tokens that take at least `spill` bytes. Keeping steps
    takes about `share` of the time; at 1 every step is kept. `stages` counts the passes that keep steps, and `finished`
    the steps that they have kept.
    """

    folder: Path
    spill_bytes: int | None = None
    memory_bytes: int = MEMORY_BYTES
    time_share: float = 0.1
    stages: int = 0
    finished: int = 0
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    live: "WeakSet[Activations]" = field(default_factory=WeakSet)

    @property
    def values(self) -> Path:
        """Where activations lie."""
        return self.folder / "values"

    def has_room(self, size: int) -> bool:
        """Is there room in memory for activations of so many bytes?"""
        return sum(values.bytes for values in self.live) + size <= self.memory_bytes


_current: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


def current_workspace() -> Workspace | None:
    """The workspace in use, if there is one."""
    return _current.get()


@contextmanager
def use_workspace(workspace: Workspace) -> Iterator[Workspace]:
    """Use this workspace in the block."""
    token = _current.set(workspace)
    try:
        yield workspace
    finally:
        _current.reset(token)
        workspace.worker.shutdown()


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make a folder, and say that it was this one if it could not be written.

    Raises:
        WorkspaceError: if that is so.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as fault:
        raise WorkspaceError(
            f"cannot write to {folder}{because(fault)}. What was finished is kept: make room and repeat the command, "
            "which goes on from there; or choose a folder on another disk (--scratch DIR, or another --output)"
        ) from fault


class Activations(Sequence[Any]):
    """Activations of all batches: in memory while a workspace has room there, in a file each otherwise.

    Files go with the object unless a finished step keeps them.
    """

    def __init__(self, folder: Path, batches: int = 0, durable: bool = False) -> None:
        self.folder, self.batches, self.durable = folder, batches, durable
        self.in_memory: dict[int, Tensor] = {}
        self.bytes, self.written = 0, batches

    def append(self, value: Tensor) -> None:
        """Add that of the next batch.

        Raises:
            WorkspaceError: if it cannot be written.
        """
        value, place = value.detach().cpu().contiguous(), current_workspace()
        size = value.untyped_storage().nbytes()
        if place is not None and place.has_room(size):
            self.in_memory[self.batches] = value
            self.bytes += size
        else:
            self._save(self.batches, value)
        self.batches += 1

    def write(self) -> None:
        """Have a file of each.

        Raises:
            WorkspaceError: if one cannot be written.
        """
        for i in range(self.written, self.batches):
            if i in self.in_memory:
                self._save(i, self.in_memory[i])
        self.written = self.batches

    def __getitem__(self, i: Any) -> Any:
        """That of one batch, memory-mapped if it is not in memory."""
        i = range(self.batches)[i]
        return self.in_memory[i] if i in self.in_memory else memory_mapped(self._path(i))["value"]

    def __len__(self) -> int:
        return self.batches

    def __del__(self) -> None:
        if not self.durable:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def files(self) -> list[Path]:
        """The files of all batches."""
        return [self._path(i) for i in range(self.batches)]

    def _save(self, i: int, value: Tensor) -> None:
        with writable(self.folder):
            save_file({"value": value}, self._path(i))

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:05d}.safetensors"


def new_activations() -> list[Any] | Activations:
    """A place for the activations of all batches: a list, or one in the workspace."""
    place = current_workspace()
    if place is None:
        return []
    found = Activations(place.values / token_hex(8))
    place.live.add(found)
    return found


def memory_mapped(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, memory-mapped."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping


def zeros(*shape: int, device: torch.device | str = "cpu") -> Tensor:
    """Zeros in double precision; in a file without a name, if they are many and the workspace is to spill, and not on
    another device.

    Raises:
        WorkspaceError: if there is no room for it.
    """
    place, count = current_workspace(), torch.Size(shape).numel()
    size = count * torch.float64.itemsize
    if place is None or place.spill_bytes is None or size < place.spill_bytes or torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=torch.float64, device=device)
    path = place.folder / f"{SUMS_PREFIX}{token_hex(8)}"
    with writable(place.folder):
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk must be found now, not when a page is written
            return torch.from_file(str(path), shared=True, size=count, dtype=torch.float64).view(shape)
        finally:
            path.unlink(missing_ok=True)  # the mapping outlives the name
