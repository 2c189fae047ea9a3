"""Durable steps of a run in a workspace: a killed run continues after the last of them.

A step is durable once all its files are on the disk and its manifest, with their sizes and checksums, has its final
name. A kill at any moment leaves earlier steps complete, and later damage is detected and the step repeated.

The activations at the end of a step can be large. Where writing them takes long compared with the step, only some steps
write them, and the steps before wait: they become durable together, the earliest last, which validates the others.

Several processes continue after the last step that all of them have finished. They finish steps together, so that none
is ahead of another by more than one commit, and they store the activations of the last two commits.
"""

import json
import logging
import math
import shutil
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from graphprune.support import distributed
from graphprune.support.atomic_output import sync, write_durably
from graphprune.support.workspace import (
    Activations,
    Workspace,
    current_workspace,
    memory_mapped,
    without_shared_memory,
    writable,
)

CHUNK = 1 << 24  # bytes of a checksum that are read at once
log = logging.getLogger("graphprune.run")


@dataclass(frozen=True)
class Step:
    """Result of a step: facts for JSON, tensors, and the activations with which the next step starts, by name.

    Several names may share activations.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Stage:
    """Steps of one pass, in order; outside of a workspace none is stored."""

    def finished(self, steps: int) -> list[Step]:
        """Return the first of `steps` that an earlier run has finished; the last of them has its activations."""
        return []

    def finish(self, step: Step) -> Step:
        """Store a step, and return it with its tensors memory-mapped.

        Raises:
            WorkspaceError: if it cannot be written.
        """
        return step

    def wait(self) -> None:
        """Return when all steps are durable.

        Raises:
            WorkspaceError: if one cannot be written.
        """


def stage(name: str) -> Stage:
    """Stage for the next pass; a repeated run requests the same stages in the same order."""
    place = current_workspace()
    if place is None:
        return Stage()
    place.stages += 1
    return _DurableStage(place, place.folder / f"{place.stages:02d}-{name}")


@dataclass(frozen=True)
class _QueuedStep:
    """Step that is not durable yet: its manifest, and the path of that.

    `values` are the activations at its end; None if they are not stored, because a later step replaces them.
    """

    path: Path
    table: Mapping[str, Any]
    tensors: Path
    values: Sequence[Activations] | None

    def reduced(self) -> "_QueuedStep":
        """Step without the activations at its end."""
        return _QueuedStep(self.path, {**self.table, "names": {}, "counts": {}}, self.tensors, None)


@dataclass
class _DurableStage(Stage):
    """Stage in files of a workspace; its steps are made durable while the next ones run."""

    workspace: Workspace
    folder: Path
    count: int = 0
    queued: list[_QueuedStep] = field(default_factory=list)
    pending: "Future[None] | None" = None
    before: Sequence[Activations] = ()
    spent: Sequence[Activations] = ()
    last: float = -math.inf  # when steps were made durable
    took: float = 0.0  # how long that took, in seconds

    def finished(self, steps: int) -> list[Step]:
        finished: list[Step] = []
        while len(finished) < steps and (step := self._read(len(finished))) is not None:
            finished.append(step)
        self.count = distributed.all_reduce_min(len(finished))
        whole = self.count in (0, steps) or self._whole(self.count - 1, "values")
        if not distributed.all_reduce_min(whole):
            self.count = 0  # the activations for the next step are missing, and earlier ones too
        finished = finished[: self.count]
        self._forget()
        if finished:
            log.info("%s: %d of %d steps were finished before", self.folder.name, len(finished), steps)
            self.before = _files(finished[-1])
        self.workspace.finished += len(finished)
        return finished

    def finish(self, step: Step) -> Step:
        path, keep = self._path("safetensors"), _files(step)
        with writable(self.folder):
            save_file(without_shared_memory(step.tensors), path)
        table = {
            "facts": dict(step.facts),
            "names": {name: value.folder.name for name, value in step.values.items() if isinstance(value, Activations)},
            "counts": {value.folder.name: len(value) for value in keep},
        }
        self.queued[-1:] = [one.reduced() for one in self.queued[-1:]]
        self.queued.append(_QueuedStep(self._path("json"), table, path, keep))
        self.count += 1
        if distributed.all_reduce_min(self._is_due()):
            self._keep()
        return Step(step.facts, memory_mapped(path), step.values)

    def wait(self) -> None:
        self._settle()
        if self.queued:
            self._keep()
            self._settle()

    def _is_due(self) -> bool:
        """Whether it is time to make steps durable."""
        share, busy = self.workspace.time_share, self.pending is not None and not self.pending.done()
        return share >= 1 or (not busy and (monotonic() - self.last) * share >= self.took)

    def _keep(self) -> None:
        """Start to make the queued steps durable."""
        self._settle()
        queued, self.queued = self.queued, []
        keep = queued[-1].values or ()
        for value in keep:
            value.durable = True
        self.spent = [value for value in self.before if value.folder.name not in queued[-1].table["counts"]]
        self.pending = self.workspace.worker.submit(self._commit, queued)
        self.before = keep

    def _settle(self) -> None:
        """Wait for the commit in progress."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()
            distributed.barrier()
            self._release()

    def _commit(self, queued: Sequence[_QueuedStep]) -> None:
        """Write steps to the disk, then count them as finished."""
        start = monotonic()
        with writable(self.folder):
            for step in reversed(queued):
                self._write(step)
        self.workspace.finished += len(queued)
        self.last, self.took = monotonic(), monotonic() - start
        if distributed.world_size() == 1:
            self._release()

    def _write(self, step: _QueuedStep) -> None:
        for value in step.values or ():
            value.write()
        files = [file for value in step.values or () for file in value.files]
        for file in (step.tensors, *files):
            sync(file)
        tensors, *sums = (_sum(self.workspace.folder, file) for file in (step.tensors, *files))
        parts = {"tensors": [tensors], "values": None if step.values is None else sums}
        write_manifest(step.path, {**step.table, **parts})

    def _release(self) -> None:
        """Remove the activations that the last step started with, which are no longer needed."""
        for value in self.spent:
            shutil.rmtree(value.folder, ignore_errors=True)

    def _forget(self) -> None:
        """Remove steps that other processes have not finished, and activations that only earlier steps end with."""
        tables = {int(path.stem): read_manifest(path) or {"counts": {}} for path in self.folder.glob("*.json")}
        needed = tables[self.count - 1]["counts"] if self.count else {}
        for number, table in tables.items():
            for name in table["counts"].keys() - needed:
                shutil.rmtree(self.workspace.values / name, ignore_errors=True)
            if number >= self.count:
                self._path("json", number).unlink()

    def _read(self, number: int) -> Step | None:
        table = read_manifest(self._path("json", number))
        if table is None or not self._whole(number, "tensors"):
            return None
        root = self.workspace.values
        places = {name: Activations(root / name, count, durable=True) for name, count in table["counts"].items()}
        tensors = memory_mapped(self._path("safetensors", number))
        return Step(table["facts"], tensors, {name: places[at] for name, at in table["names"].items()})

    def _whole(self, number: int, part: str) -> bool:
        """Whether the files of a step have their checksums; false if they were not stored."""
        sums = (read_manifest(self._path("json", number)) or {})[part]
        root = self.workspace.folder
        return sums is not None and all(_sum(root, root / name) == [name, *rest] for name, *rest in sums)

    def _path(self, kind: str, number: int | None = None) -> Path:
        return self.folder / f"{self.count if number is None else number:05d}.{kind}"


def write_manifest(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table durably, with its checksum."""
    text = json.dumps(table)
    write_durably(path, f"{zlib.crc32(text.encode())}\n{text}")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Manifest of a finished step; None if it is missing or damaged."""
    if not path.is_file():
        return None
    checksum, _, text = path.read_bytes().partition(b"\n")
    if checksum != str(zlib.crc32(text)).encode():
        return None
    table: dict[str, Any] = json.loads(text)
    return table


def _files(step: Step) -> list[Activations]:
    """Activations of a step that are stored in files, each once."""
    return list({id(v): v for v in step.values.values() if isinstance(v, Activations)}.values())


def _sum(root: Path, path: Path) -> list[Any]:
    """Name, size and checksum of a file; the size of a missing file is -1."""
    name = path.relative_to(root).as_posix()
    if not path.is_file():
        return [name, -1, 0]
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [name, path.stat().st_size, checksum]
