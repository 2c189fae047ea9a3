"""Memory of this process: current, peak, and peak while a block runs."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

STATUS = Path("/proc/self/status")
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc
FREED = 1 << 20  # bytes from which on an allocation is a separate mapping
INTERVAL = 0.005  # seconds between two samples; shorter peaks may be missed


@dataclass
class Peak:
    """Peak memory of the samples, in bytes (see `anonymous_bytes`)."""

    bytes: int = 0

    def sample(self) -> None:
        """Include the memory that is held now."""
        self.bytes = max(self.bytes, anonymous_bytes())


def peak_memory() -> int:
    """Peak memory of this process in bytes, including mapped files."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Windows lacks it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def anonymous_bytes() -> int:
    """Bytes that this process holds now and that the kernel cannot drop: heap and stacks.

    On Linux they exclude pages of memory-mapped files (RssFile) and shared memory (RssShmem). On other systems they are
    the unique set size (USS), which includes pages of mapped files while they are in memory.
    """
    if sys.platform != "linux":
        return int(psutil.Process().memory_full_info().uss)
    with STATUS.open("rb") as file:
        line = next(line for line in file if line.startswith(b"RssAnon:"))
    return int(line.split()[1]) * 1024


def return_freed_memory() -> None:
    """Return freed memory to the system at once from now on, so that held memory is live memory.

    By default, glibc caches freed tensors of some megabytes; other systems need no setting.
    """
    if (library := _glibc()) is not None:
        library.mallopt(MMAP_THRESHOLD, FREED)
        trim_memory()


def trim_memory() -> None:
    """Return what was freed up to now to the system, which caches it by default."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


@contextmanager
def watch_peak() -> Iterator[Peak]:
    """Sample `anonymous_bytes` in a thread while the block runs; the peak is final when the block ends."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            peak.sample()

    thread = threading.Thread(target=watch, name="peak memory", daemon=True)
    peak.sample()
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.sample()
