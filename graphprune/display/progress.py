"""Progress of long work: a bar on a terminal and in a notebook, otherwise a line every half minute."""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from tqdm import TqdmWarning

from graphprune.support import distributed

with warnings.catch_warnings():  # without ipywidgets tqdm warns, and draws the bar of a notebook as text
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

Step = Callable[..., None]
EVERY = 30.0  # seconds between two lines
REDRAWN = 1.0  # seconds between updates of the clock of a bar
LINE = "{desc}: {n_fmt}/{total_fmt}, {elapsed} elapsed, {remaining} remaining"
RATED = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {elapsed} elapsed, {remaining} remaining"

log = logging.getLogger("graphprune.progress")
bars = logging.getLogger("graphprune.bars")  # a switch that logs nothing: disabled for warnings, it hides bars


@contextmanager
def progress(what: str, total: int, *, unit: str = "", initial: int = 0) -> Iterator[Step]:
    """Show the progress of `what` and its remaining time; with a `unit`, such as tokens, also how many of it a second.

    A continued work starts at `initial`. The yielded function advances by one, or by its argument. A bar disappears
    when the work is done. Lines go to the logger ``graphprune.progress``, or to standard error if that logger is
    disabled and there is no bar. No bar is drawn if the logger ``graphprune.bars`` is disabled for warnings. Only the
    first process of a run shows progress.
    """
    quiet = not bars.isEnabledFor(logging.WARNING)
    if distributed.rank() > 0 or (quiet and not log.isEnabledFor(logging.INFO)):
        yield no_progress
        return
    start, done, terminal = time.monotonic(), initial, sys.stderr.isatty()
    watched = not quiet and (terminal or "ipykernel.zmqshell" in sys.modules)
    scale: dict[str, Any] = {"unit": f" {unit}", "unit_scale": True, "initial": initial} if unit else {}
    with tqdm(total=total, desc=what, leave=False, dynamic_ncols=terminal, disable=not watched, **scale) as bar:

        def step(count: int = 1) -> None:
            nonlocal done
            done += count
            bar.update(count)

        def report() -> None:
            form = RATED if unit else LINE
            line = tqdm.format_meter(done, total, time.monotonic() - start, prefix=what, bar_format=form, **scale)
            if watched or quiet or log.isEnabledFor(logging.INFO):
                log.info("%s", line)
            else:
                sys.stderr.write(f"{line}\n")

        with _repeated(EVERY, report), _repeated(REDRAWN if watched and terminal else 0, bar.refresh):
            yield step


def no_progress(count: int = 1) -> None:
    """Show no progress."""


@contextmanager
def _repeated(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Repeat an action at an interval while the block runs; never for 0 seconds."""
    stop = Event()

    def work() -> None:
        while not stop.wait(seconds):
            action()

    thread = Thread(target=work, name="graphprune progress", daemon=True)
    if seconds:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if seconds:
            thread.join()
