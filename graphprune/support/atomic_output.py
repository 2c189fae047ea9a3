"""Atomic output: files and folders that appear complete or not at all."""

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from graphprune.errors import ExportError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # the file system does not support fsync


@contextmanager
def new_folder(output: Path | str, force: bool = False) -> Iterator[Path]:
    """Write a folder under a temporary name next to `output`, and rename it when the block succeeds.

    An error or interrupt in the block removes the temporary folder; `output` is unchanged.

    Raises:
        ExportError: if `output` exists and `force` is not set, may not be replaced, or the disk is full.
    """
    final = _free(Path(output), force)
    _check_folder(final)
    with _staged(final) as temporary:
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        _replace(temporary, final)


@contextmanager
def new_file(output: Path | str, force: bool = False) -> Iterator[Path]:
    """Write a file under a temporary name next to `output`, as `new_folder` does for folders.

    The temporary name has the suffix of `output`, for writers that depend on it.

    Raises:
        ExportError: if `output` exists and `force` is not set, is a folder, or the disk is full.
    """
    final = check_file(output, force)
    with _staged(final) as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(final)
        sync(final.parent)


def write_durably(path: Path, text: str) -> None:
    """Replace a small file atomically and sync it; until then, or after a kill, readers see the old one.

    Raises:
        OSError: if it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(text.encode())
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def check_output(output: Path | str, force: bool = False) -> None:
    """Raise the errors of `new_folder` before any work.

    Raises:
        ExportError: if `output` exists and `force` is not set, or may not be replaced.
    """
    _check_folder(_free(Path(output), force))


def remove_unfinished(output: Path) -> None:
    """Remove temporary files of a killed process; the caller must know that no other process writes the output.

    An output that the killed process was replacing gets its name back.
    """
    final = output.resolve()
    name = f".unfinished-????????-{glob.escape(final.name)}"
    for old in final.parent.glob(f"{name}.old"):
        if not final.exists():
            old.rename(final)
        _remove(old)
    for path in final.parent.glob(name):
        _remove(path)


def check_file(output: Path | str, force: bool = False) -> Path:
    """Raise the errors of `new_file` before any work; return the resolved path of the file.

    Raises:
        ExportError: if `output` exists and `force` is not set, or is a folder.
    """
    final = _free(Path(output), force)
    if final.is_dir():
        raise ExportError(f"{output} is a folder; name a file in it")
    return final


def _free(output: Path, force: bool) -> Path:
    """Resolved path of `output`, if it may be written."""
    if not output.name and output != Path():
        raise ExportError(f"{output} cannot be an output; name a new folder or file")
    if os.path.lexists(output) and not force:
        raise ExportError(f"{output} exists already; choose another output or pass --force to replace it")
    return output.resolve()


def _check_folder(final: Path) -> None:
    """Refuse to replace a file, the working folder, its parents, or the home folder."""
    if final.exists() and not final.is_dir():
        raise ExportError(f"{final} is a file; name a folder")
    protected = (Path.cwd().resolve(), Path.home().resolve())
    if any(folder == final or final in folder.parents for folder in protected):
        raise ExportError(f"{final} holds the working or the home folder and is never replaced; name a folder in it")


@contextmanager
def _staged(final: Path) -> Iterator[Path]:
    """Temporary path next to `final`; on failure it is removed, and new parent folders too."""
    missing = [folder for folder in final.parents if not folder.exists()]
    temporary = final.with_name(f".unfinished-{token_hex(4)}-{final.name}")
    _make(final.parent)
    try:
        yield temporary
    except BaseException as fault:
        _remove(temporary)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(fault, OSError) and fault.errno in UNWRITABLE:
            raise ExportError(
                f"cannot write {final}: {fault.strerror}; free some space, and repeat the command"
            ) from fault
        raise


def _make(parent: Path) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        why = "not a folder" if isinstance(fault, FileExistsError | NotADirectoryError) else fault.strerror
        raise ExportError(f"cannot write to {parent}: {why}") from fault
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"cannot write to {parent}: permission denied")


def _replace(temporary: Path, final: Path) -> None:
    """Rename the finished folder to its final name; an old output is restored if that fails."""
    old = temporary.with_name(f"{temporary.name}.old")
    if final.exists():
        final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        raise
    sync(final.parent)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    path.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, where the file system supports it.

    Raises:
        OSError: if the disk cannot.
    """
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno not in UNSYNCED:
            raise
    finally:
        os.close(handle)
