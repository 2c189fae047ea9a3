"""How much memory this process holds, and held at most while something ran."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

STATUS = Path("/proc/self/status")
MMAP_THRESHOLD = -3  # the number by which glibc knows it
FREED = 1 << 20  # bytes from which on an allocation is a mapping of its own
INTERVAL = 0.005  # seconds between two looks; what is held for a shorter time may be missed


@dataclass
class Peak:
    """The most memory that was seen, in bytes (see `anonymous`)."""

    bytes: int = 0

    def sample(self) -> None:
        """See what is held now."""
        self.bytes = max(self.bytes, anonymous_bytes())


def peak_memory() -> int:
    """The most memory that this process ever held, in bytes, mapped files included."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def anonymous_bytes() -> int:
    """The bytes that this process holds now and that the kernel cannot drop: heap and stacks.

    On Linux, pages of memory-mapped files (RssFile) and shared memory (RssShmem) are not among them; on other systems
    it is what the process would free if it ended (USS), where pages of mapped files count while they are in memory.
    """
    if sys.platform != "linux":
        return int(psutil.Process().memory_full_info().uss)
    with STATUS.open("rb") as file:
        line = next(line for line in file if line.startswith(b"RssAnon:"))
    return int(line.split()[1]) * 1024


def return_freed_memory() -> None:
    """Have what is freed from now on go back to the system at once, so that what is held is what is alive.

    The C library of most Linux systems would keep tensors of some megabytes for the next ones; others need no word.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(MMAP_THRESHOLD, FREED)
        library.malloc_trim(0)


@contextmanager
def watch_peak() -> Iterator[Peak]:
    """Watch `anonymous` from a thread while the block runs; the peak is whole when it ends."""
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
