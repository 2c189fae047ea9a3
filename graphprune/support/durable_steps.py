"""The finished steps of a run in a workspace: a run that was killed goes on after the last of them.

A step counts once all its files are on the disk and one that tells their sizes and checksums has got its name. So a
kill at any moment leaves the steps before it whole, and what is damaged later is noticed and made again.

What a step ends with can be large. Where it takes long to write beside the step itself, only some steps write it, and
those before wait for them: they are made durable together, the earliest last, so that it makes the others count.

Several processes go on after the last step that all of them have finished: they finish steps together, so that none is
ahead of another by more than one time, and keep what both of the last two ended with.
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
from graphprune.support.workspace import Activations, Workspace, current_workspace, memory_mapped, writable

CHUNK = 1 << 24  # bytes that are summed at once
log = logging.getLogger("graphprune.run")


@dataclass(frozen=True)
class Step:
    """What a step found: numbers that JSON has, tensors, and the activations with which the next one starts, by name.

    Several names may have the same activations.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Stage:
    """The steps of one pass, in order. Outside of a workspace none is kept."""

    def finished(self, steps: int) -> list[Step]:
        """Those of all `steps` that an earlier run has finished; the last of them has its activations."""
        return []

    def finish(self, step: Step) -> Step:
        """Keep a step; what comes back is the same, its tensors memory-mapped.

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
    """The steps of the next pass; a run that is repeated asks for the same ones in the same order."""
    place = current_workspace()
    if place is None:
        return Stage()
    place.stages += 1
    return _Kept(place, place.folder / f"{place.stages:02d}-{name}")


@dataclass(frozen=True)
class _Noted:
    """A step that is not durable yet: what will be said of it, and where.

    `values` are what it ends with; None if they are not kept, since a later step makes them needless.
    """

    path: Path
    table: Mapping[str, Any]
    tensors: Path
    values: Sequence[Activations] | None

    def reduced(self) -> "_Noted":
        """The same without what it ends with."""
        return _Noted(self.path, {**self.table, "names": {}, "counts": {}}, self.tensors, None)


@dataclass
class _Kept(Stage):
    """Steps in files of a workspace, made durable while the next ones run."""

    workspace: Workspace
    folder: Path
    count: int = 0
    noted: list[_Noted] = field(default_factory=list)
    pending: "Future[None] | None" = None
    before: Sequence[Activations] = ()
    spent: Sequence[Activations] = ()
    last: float = -math.inf  # when steps were made durable
    took: float = 0.0  # how long that took, in seconds

    def finished(self, steps: int) -> list[Step]:
        found: list[Step] = []
        while len(found) < steps and (step := self._read(len(found))) is not None:
            found.append(step)
        self.count = distributed.all_reduce_min(len(found))
        whole = self.count in (0, steps) or self._whole(self.count - 1, "values")
        if not distributed.all_reduce_min(whole):
            self.count = 0  # what the next step starts with is gone, and all before it, too
        found = found[: self.count]
        self._forget()
        if found:
            log.info("%s: %d of %d steps were finished before", self.folder.name, len(found), steps)
            self.before = _files(found[-1])
        self.workspace.finished += len(found)
        return found

    def finish(self, step: Step) -> Step:
        path, keep = self._path("safetensors"), _files(step)
        with writable(self.folder):
            save_file({name: tensor.contiguous() for name, tensor in step.tensors.items()}, path)
        table = {
            "facts": dict(step.facts),
            "names": {name: value.folder.name for name, value in step.values.items() if isinstance(value, Activations)},
            "counts": {value.folder.name: len(value) for value in keep},
        }
        self.noted[-1:] = [one.reduced() for one in self.noted[-1:]]
        self.noted.append(_Noted(self._path("json"), table, path, keep))
        self.count += 1
        if distributed.all_reduce_min(self._is_due()):
            self._keep()
        return Step(step.facts, memory_mapped(path), step.values)

    def wait(self) -> None:
        self._settle()
        if self.noted:
            self._keep()
            self._settle()

    def _is_due(self) -> bool:
        """Is it time to make steps durable?"""
        share, busy = self.workspace.time_share, self.pending is not None and not self.pending.done()
        return share >= 1 or (not busy and (monotonic() - self.last) * share >= self.took)

    def _keep(self) -> None:
        """Begin to make durable what was noted."""
        self._settle()
        noted, self.noted = self.noted, []
        keep = noted[-1].values or ()
        for value in keep:
            value.durable = True
        self.spent = [value for value in self.before if value.folder.name not in noted[-1].table["counts"]]
        self.pending = self.workspace.worker.submit(self._commit, noted)
        self.before = keep

    def _settle(self) -> None:
        """Wait for what is being made durable."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()
            distributed.barrier()
            self._release()

    def _commit(self, noted: Sequence[_Noted]) -> None:
        """Have the disk hold steps, then say so."""
        start = monotonic()
        with writable(self.folder):
            for step in reversed(noted):
                self._write(step)
        self.workspace.finished += len(noted)
        self.last, self.took = monotonic(), monotonic() - start
        if distributed.world_size() == 1:
            self._release()

    def _write(self, step: _Noted) -> None:
        for value in step.values or ():
            value.write()
        files = [file for value in step.values or () for file in value.files]
        for file in (step.tensors, *files):
            sync(file)
        tensors, *sums = (_sum(self.workspace.folder, file) for file in (step.tensors, *files))
        parts = {"tensors": [tensors], "values": None if step.values is None else sums}
        text = json.dumps({**step.table, **parts})
        write_durably(step.path, f"{zlib.crc32(text.encode())}\n{text}")

    def _release(self) -> None:
        """Let go of what the last step started with, which nobody goes back to."""
        for value in self.spent:
            shutil.rmtree(value.folder, ignore_errors=True)

    def _forget(self) -> None:
        """Remove the steps that other processes have not finished, and what only other steps than the last end with."""
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
        """Are the files of a step what they were? Those that were not kept are not."""
        sums = (read_manifest(self._path("json", number)) or {})[part]
        root = self.workspace.folder
        return sums is not None and all(_sum(root, root / name) == [name, *rest] for name, *rest in sums)

    def _path(self, kind: str, number: int | None = None) -> Path:
        return self.folder / f"{self.count if number is None else number:05d}.{kind}"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What a finished step says of itself; None if it is not there, or damaged."""
    if not path.is_file():
        return None
    found, _, text = path.read_bytes().partition(b"\n")
    if found != str(zlib.crc32(text)).encode():
        return None
    table: dict[str, Any] = json.loads(text)
    return table


def _files(step: Step) -> list[Activations]:
    """The activations of a step that lie in files, each once."""
    return list({id(v): v for v in step.values.values() if isinstance(v, Activations)}.values())


def _sum(root: Path, path: Path) -> list[Any]:
    """The name, size and checksum of a file; a size of -1 if it is not there."""
    name = path.relative_to(root).as_posix()
    if not path.is_file():
        return [name, -1, 0]
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return [name, path.stat().st_size, found]
