"""Resumable runs: repeating a killed command continues in its workspace."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from graphprune.errors import CalibrationError, InvalidProgram, PlanError, VerificationError, WorkspaceError, because
from graphprune.support import distributed
from graphprune.support.atomic_output import write_durably
from graphprune.support.durable_steps import read_manifest
from graphprune.support.workspace import (
    MEMORY_BYTES,
    SUMS_PREFIX,
    Workspace,
    current_workspace,
    use_workspace,
    writable,
)

FINAL = (PlanError, InvalidProgram, CalibrationError, VerificationError)  # repeating the run would raise them again
IDENTITY, LOCK, OUTCOME = "identity.json", "lock", "outcome"
log = logging.getLogger("graphprune.run")


@contextmanager
def resumable(
    folder: Path, identity: Mapping[str, Any], restart: bool | None, spill: int | None = None, hold: int = MEMORY_BYTES
) -> Iterator[Workspace]:
    """Open a workspace in `folder`; remove it when the block succeeds, or a new run fails before a step is finished.

    `identity` is everything that the outcome depends on: an unfinished run with the same identity is continued, and
    what it has stored remains if this run fails, too. With
    `restart`, an unfinished run is removed first; None stands for a command without this option, whose errors name the
    folder to delete.

    Raises:
        WorkspaceError: if the folder holds an unfinished run of another identity and `restart` is not set, is in use,
            or cannot be written.
    """
    own = folder / f"{distributed.rank()}"
    with writable(own):
        lock = FileLock(own / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as fault:
        raise WorkspaceError(f"{own} is in use by another run; wait for it, or choose another output") from fault
    try:
        continued = _prepare(own, identity, restart)
        workspace = Workspace(own, spill, hold)
        try:
            with use_workspace(workspace):
                yield workspace
        except BaseException as fault:
            if (workspace.finished or continued) and not isinstance(fault, FINAL):
                log.warning("finished steps are stored in %s: repeat the command to continue", folder)
                raise
            shutil.rmtree(own, ignore_errors=True)
            raise
        shutil.rmtree(own, ignore_errors=True)
    finally:
        lock.release()
        with suppress(OSError):  # other processes, or an unfinished run, may still use it
            folder.rmdir()


def note_outcome(unfinished: Path) -> None:
    """Record the folder that is the outcome of the run, before it gets its name."""
    place = current_workspace()
    if place is not None:
        with writable(place.folder):
            (place.folder / OUTCOME).write_text(_folder_id(unfinished), encoding="utf-8")


def remove_leftovers(folder: Path, output: Path) -> None:
    """Remove the workspace of a run that was killed after its output got its name."""
    note = folder / "0" / OUTCOME
    if note.is_file() and output.is_dir() and note.read_text(encoding="utf-8") == _folder_id(output):
        shutil.rmtree(folder, ignore_errors=True)


def _folder_id(folder: Path) -> str:
    """Identifier of a folder that does not depend on its name."""
    stat = folder.stat()
    return f"{stat.st_dev} {stat.st_ino}"


def file_states(*paths: str | Path | None) -> dict[str, Any]:
    """Sizes and modification times of files, and of those in folders, which must not change during a run."""
    states: dict[str, Any] = {}
    for path in (Path(path) for path in paths if path is not None):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                states[str(file.resolve())] = [file.stat().st_size, file.stat().st_mtime_ns]
    return states


def _prepare(own: Path, identity: Mapping[str, Any], restart: bool | None) -> bool:
    """Prepare the folder; whether it holds an unfinished run, which must have the same identity."""
    path, text = own / IDENTITY, json.dumps(identity, sort_keys=True, default=str)
    advice = f"delete {own.parent} to start over" if restart is None else "pass --restart (restart=True) to start over"
    if restart or not path.is_file():
        _clear(own)
        with writable(own):
            write_durably(path, text)
        return False
    try:
        before, now = (json.loads(t) for t in (path.read_bytes(), text))
    except ValueError as fault:
        raise WorkspaceError(f"{path} is damaged{because(fault)}; {advice}") from fault
    if before != now:
        difference = next(differences(before, now), "nothing")
        raise WorkspaceError(
            f"{own.parent} holds an unfinished run that is not this one: {difference}; repeat its command to continue "
            f"it, or {advice}"
        )
    log.info("continuing the unfinished run in %s", own)
    _sweep(own)
    return True


def differences(before: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Differences between the identities of two runs, in words."""
    for key in dict.fromkeys((*before, *now)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{at}{key} ")
        elif old != new:
            yield f"{at}{key} was {old!r} and is {new!r}"


def _clear(own: Path) -> None:
    for path in own.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _sweep(own: Path) -> None:
    """Remove activations that no finished step needs, and incomplete sums."""
    tables = [read_manifest(path) or {"counts": ()} for path in own.glob("*/*.json")]
    needed = {name for table in tables for name in table["counts"]}
    for folder in (own / "values").glob("*"):
        if folder.name not in needed:
            shutil.rmtree(folder, ignore_errors=True)
    for path in own.glob(f"{SUMS_PREFIX}*"):
        path.unlink(missing_ok=True)
