"""The workspace of a run, which is found again when the same command is repeated after a kill."""

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

FINAL = (PlanError, InvalidProgram, CalibrationError, VerificationError)  # the same would come of it another time
ASKED, LOCK, OUTCOME = "asked.json", "lock", "outcome"
log = logging.getLogger("graphprune.run")


@contextmanager
def resumable(
    folder: Path, asked: Mapping[str, Any], restart: bool | None, spill: int | None = None, hold: int = MEMORY_BYTES
) -> Iterator[Workspace]:
    """A workspace in `folder` for the block; it goes when the block succeeds, or fails before any step was finished.

    `asked` is all that the outcome depends on: an earlier run that asked for the same is continued. With `restart`, an
    unfinished run is removed first; None stands for a command without this option, whose errors name the folder to
    delete.

    Raises:
        WorkspaceError: if the folder holds an unfinished run that asked for something else and `restart` is not set,
            is in use, or cannot be written.
    """
    own = folder / f"{distributed.rank()}"
    with writable(own):
        lock = FileLock(own / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as fault:
        raise WorkspaceError(f"{own} is in use by another run; wait for it, or choose another output") from fault
    try:
        _prepare(own, asked, restart)
        workspace = Workspace(own, spill, hold)
        try:
            with use_workspace(workspace):
                yield workspace
        except BaseException as fault:
            if workspace.finished and not isinstance(fault, FINAL):
                log.warning("what was finished is kept in %s: the same command goes on from there", folder)
                raise
            shutil.rmtree(own, ignore_errors=True)
            raise
        shutil.rmtree(own, ignore_errors=True)
    finally:
        lock.release()
        with suppress(OSError):  # other processes, or an unfinished run, may still be there
            folder.rmdir()


def note_outcome(unfinished: Path) -> None:
    """Note which folder is what the run came to, once it lacks only its name."""
    place = current_workspace()
    if place is not None:
        with writable(place.folder):
            (place.folder / OUTCOME).write_text(_identity(unfinished), encoding="utf-8")


def remove_leftovers(folder: Path, output: Path) -> None:
    """Remove the workspace of a run that was killed when its output had got its name already."""
    note = folder / "0" / OUTCOME
    if note.is_file() and output.is_dir() and note.read_text(encoding="utf-8") == _identity(output):
        shutil.rmtree(folder, ignore_errors=True)


def _identity(folder: Path) -> str:
    """By what a folder is known under any name."""
    found = folder.stat()
    return f"{found.st_dev} {found.st_ino}"


def file_states(*paths: str | Path | None) -> dict[str, Any]:
    """Size and time of change of files, and of those in folders: what a run reads must not change until it is done."""
    found: dict[str, Any] = {}
    for path in (Path(path) for path in paths if path is not None):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                found[str(file.resolve())] = [file.stat().st_size, file.stat().st_mtime_ns]
    return found


def _prepare(own: Path, asked: Mapping[str, Any], restart: bool | None) -> None:
    """See that what lies there belongs to this run."""
    path, text = own / ASKED, json.dumps(asked, sort_keys=True, default=str)
    anew = f"delete {own.parent} to begin anew" if restart is None else "pass --restart to begin anew"
    if restart or not path.is_file():
        _clear(own)
        with writable(own):
            write_durably(path, text)
        return
    try:
        before, now = (json.loads(t) for t in (path.read_bytes(), text))
    except ValueError as fault:
        raise WorkspaceError(f"{path} is damaged{because(fault)}; {anew}") from fault
    if before != now:
        other = next(differences(before, now), "nothing")
        raise WorkspaceError(
            f"{own.parent} holds an unfinished run that is not this one: {other}; repeat its command to go on with it, "
            f"or {anew}"
        )
    log.info("going on with the unfinished run in %s", own)
    _sweep(own)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """What differs between the inputs of two runs, in words."""
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
    """Remove activations that no finished step goes on with, and sums that were just being made."""
    tables = [read_manifest(path) or {"counts": ()} for path in own.glob("*/*.json")]
    needed = {name for table in tables for name in table["counts"]}
    for folder in (own / "values").glob("*"):
        if folder.name not in needed:
            shutil.rmtree(folder, ignore_errors=True)
    for path in own.glob(f"{SUMS_PREFIX}*"):
        path.unlink(missing_ok=True)
