"""Results that are made once and kept for the next time, in the user's cache folder."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from graphprune.errors import ExportError, LoadError, because
from graphprune.support.atomic_output import new_folder, remove_unfinished


def once(kind: str, sources: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills from `sources`; made again only when one of them changed.

    It gets its name when it is complete, so that an interrupted run leaves nothing behind; of processes that ask at
    once, one makes it, and the others wait.

    Raises:
        LoadError: if the cache cannot be written.
    """
    final = root() / kind / _key(sources)
    if final.is_dir():
        return final
    try:
        with _alone(final):
            if not final.is_dir():
                remove_unfinished(final)
                with new_folder(final) as unfinished:
                    make(unfinished)
    except (ExportError, OSError) as fault:
        raise LoadError(
            f"cannot write the cache {final}{because(fault)}; set XDG_CACHE_HOME to a folder with room"
        ) from fault
    return final


@contextmanager
def _alone(final: Path) -> Iterator[None]:
    """Wait for other processes that make the same."""
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = final.with_suffix(".lock")
    try:
        with FileLock(lock):
            yield
            lock.unlink(missing_ok=True)
    except BaseException:
        lock.unlink(missing_ok=True)
        for folder in (final.parent, root()):
            with suppress(OSError):
                folder.rmdir()
        raise


def root() -> Path:
    """Where all that is cached lies: ``$XDG_CACHE_HOME/graphprune``, or below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "graphprune"


def _key(sources: Iterable[Path]) -> str:
    """Changes when a source is moved, resized or written to."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(sources)]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:24]
