"""Outputs that appear complete or not at all."""

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
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # there is nothing to wait for


@contextmanager
def new_folder(output: Path | str, force: bool = False) -> Iterator[Path]:
    """Write a folder under another name beside `output`; it gets its own name when the block succeeds.

    Whatever ends the block early, an interrupt too, removes what was written and leaves `output` as it was.

    Raises:
        ExportError: if `output` exists and `force` is not set, may not be replaced, or there is no room for it.
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
    """Write a file under another name beside `output`, as `new_folder` does for folders.

    The name ends as that of `output` does, for writers that look at it.

    Raises:
        ExportError: if `output` exists and `force` is not set, is a folder, or there is no room for it.
    """
    final = check_file(output, force)
    with _staged(final) as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(final)
        sync(final.parent)


def write_durably(path: Path, text: str) -> None:
    """Write a small file that the disk holds then; who looks meanwhile, or after a kill, sees the old one.

    Raises:
        OSError: if it cannot be written.
    """
    beside = path.with_name(f"{path.name}.partial")
    beside.write_bytes(text.encode())
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def check_output(output: Path | str, force: bool = False) -> None:
    """Raise what `new_folder` would raise, before any work is done.

    Raises:
        ExportError: if `output` exists and `force` is not set, or may not be replaced.
    """
    _check_folder(_free(Path(output), force))


def remove_unfinished(output: Path) -> None:
    """Remove what a killed process has left of an output; only for who knows that no other process writes it.

    What was just being replaced when it was killed gets its name back.
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
    """Raise what `new_file` would raise, before any work is done; the real place of the file.

    Raises:
        ExportError: if `output` exists and `force` is not set, or is a folder.
    """
    final = _free(Path(output), force)
    if final.is_dir():
        raise ExportError(f"{output} is a folder; name a file in it")
    return final


def _free(output: Path, force: bool) -> Path:
    """The real place of `output`, through links, if it may be written."""
    if not output.name and output != Path():
        raise ExportError(f"{output} cannot be an output; name a new folder or file")
    if os.path.lexists(output) and not force:
        raise ExportError(f"{output} exists already; choose another output or pass --force to replace it")
    return output.resolve()


def _check_folder(final: Path) -> None:
    """Refuse what nobody means to replace: a file, the working folder or one around it, the home folder."""
    if final.exists() and not final.is_dir():
        raise ExportError(f"{final} is a file; name a folder")
    kept = (Path.cwd().resolve(), Path.home().resolve())
    if any(folder == final or final in folder.parents for folder in kept):
        raise ExportError(f"{final} holds the working or the home folder and is never replaced; name a folder in it")


@contextmanager
def _staged(final: Path) -> Iterator[Path]:
    """A name beside `final` for what is incomplete; on failure nothing is left of it, nor of new parents."""
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
            raise ExportError(f"cannot write {final}: {fault.strerror}; make room, and repeat the command") from fault
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
    """Give the finished folder its name; what stood there comes back if that fails."""
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
    """Have the disk hold what was written, where the system can promise that.

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
