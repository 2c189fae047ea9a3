"""Workspace: a folder of plain files in which a run stores the activations of its samples and its finished steps.

Inside `use_workspace`, large values are stored in memory-mapped files, whose pages the system drops when memory is
short. Outside of it everything is held in memory. See `durable_steps` for how a killed run continues.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
MEMORY_BYTES = 1 << 30  # bytes of activations in memory without an explicit limit


@dataclass
class Workspace:
    """Folder for the files of one run.

    Activations beyond `memory_bytes` are stored in files, and so are sums over tokens of at least `spill_bytes`.
    Storing steps takes about `time_share` of the time; at 1 every step is stored. `stages` counts the passes that store
    steps, and `finished` the steps that they have stored.
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
        """Folder of activations."""
        return self.folder / "values"

    def has_room(self, size: int) -> bool:
        """Whether activations of so many bytes fit in memory."""
        return sum(values.bytes for values in self.live) + size <= self.memory_bytes


_current: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


def current_workspace() -> Workspace | None:
    """Workspace in use, if there is one."""
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
    """Create a folder; errors of writing in the block name it.

    Raises:
        WorkspaceError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as fault:
        raise WorkspaceError(
            f"cannot write to {folder}{because(fault)}. Finished steps are stored: free some space and repeat the "
            "command, which continues after them; or use a folder on another disk (--scratch DIR, or another --output)"
        ) from fault


class Activations(Sequence[Any]):
    """Activations of all batches: in memory while the workspace has room for them, otherwise in one file each.

    The files are removed with the object unless a finished step needs them.
    """

    def __init__(self, folder: Path, batches: int = 0, durable: bool = False) -> None:
        self.folder, self.batches, self.durable = folder, batches, durable
        self.in_memory: dict[int, Tensor] = {}
        self.bytes, self.written = 0, batches

    def append(self, value: Tensor) -> None:
        """Add the activation of the next batch.

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
        """Write a file for each batch.

        Raises:
            WorkspaceError: if one cannot be written.
        """
        for i in range(self.written, self.batches):
            if i in self.in_memory:
                self._save(i, self.in_memory[i])
        self.written = self.batches

    def __getitem__(self, i: Any) -> Any:
        """Activation of one batch, memory-mapped if it is not in memory."""
        i = range(self.batches)[i]
        return self.in_memory[i] if i in self.in_memory else memory_mapped(self._path(i))["value"]

    def __len__(self) -> int:
        return self.batches

    def __del__(self) -> None:
        if not self.durable:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def files(self) -> list[Path]:
        """Files of all batches."""
        return [self._path(i) for i in range(self.batches)]

    def _save(self, i: int, value: Tensor) -> None:
        with writable(self.folder):
            save_file({"value": value}, self._path(i))

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:05d}.safetensors"


def without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors for a file, which has each on its own: one in the memory of another is copied."""
    saved, memory = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        start = whole.untyped_storage().data_ptr()
        saved[name] = whole.clone() if start in memory else whole
        memory.add(start)
    return saved


def new_activations() -> list[Any] | Activations:
    """Empty container for the activations of all batches: in the workspace if there is one, else a list."""
    place = current_workspace()
    if place is None:
        return []
    values = Activations(place.values / token_hex(8))
    place.live.add(values)
    return values


def memory_mapped(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, memory-mapped."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping


def zeros(*shape: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    """Zeros of a type; in a memory-mapped file without a name if they exceed the workspace's spill size.

    Raises:
        WorkspaceError: if the disk is full.
    """
    place, count = current_workspace(), torch.Size(shape).numel()
    size = count * dtype.itemsize
    if place is None or place.spill_bytes is None or size < place.spill_bytes or torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    path = place.folder / f"{SUMS_PREFIX}{token_hex(8)}"
    with writable(place.folder):
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk must fail now, not when a page is written
            return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
        finally:
            path.unlink(missing_ok=True)  # the mapping outlives the name
