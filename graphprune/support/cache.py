"""Cache of converted models in the user's cache folder; each is converted once."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from graphprune.errors import ExportError, LoadError, because
from graphprune.support.atomic_output import new_folder, remove_unfinished


def once(kind: str, sources: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """Return the folder that `make` fills from `sources`; it is filled again only after one of them changed.

    The folder is renamed into place when it is complete, so that an interrupted run leaves nothing behind. One of
    several processes fills it, and the others wait.

    Raises:
        LoadError: if the cache cannot be written.
    """
    final = root() / kind / _key(sources)
    if final.is_dir():
        return final
    try:
        with _locked(final):
            if not final.is_dir():
                remove_unfinished(final)
                with new_folder(final) as unfinished:
                    make(unfinished)
    except (ExportError, OSError) as fault:
        raise LoadError(
            f"cannot write the cache {final}{because(fault)}; set XDG_CACHE_HOME to a folder with enough space"
        ) from fault
    return final


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    """Hold the lock of a folder; wait while another process holds it."""
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
    """Cache folder: ``$XDG_CACHE_HOME/graphprune``, or the default of the system, such as ``~/.cache/graphprune``."""
    return user_cache_path("graphprune", appauthor=False)


def _key(sources: Iterable[Path]) -> str:
    """Hash of the paths, sizes and modification times of the sources."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(sources)]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:24]
