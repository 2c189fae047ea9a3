"""Logging of the command line, to standard error and to a file.

Standard error has warnings, the memory estimate of a run, where it continues, and progress where no bar is drawn; with
``-v`` also the passes with their seconds, with ``-vv`` everything, with ``-q`` only errors. A file gets everything,
with times, whatever the flags.
"""

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import typer

from graphprune.errors import because

ALWAYS = ("graphprune.run", "graphprune.progress")  # loggers whose information is shown without -v
SWITCHES = ("-q", "--quiet", "-v", "-vv", "--verbose")
TIMED = "%(asctime)s %(levelname)s %(name)s: %(message)s"

log = logging.getLogger("graphprune")


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Handler that writes to the standard error of the moment."""

    def __init__(self, verbose: int) -> None:
        logging.Handler.__init__(self)
        self.verbose = verbose

    @property
    def stream(self) -> TextIO:
        """Standard error."""
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the flags select a message; lines of progress only where no bar is drawn."""
        if record.name == "graphprune.progress" and sys.stderr.isatty():
            return False
        least = (logging.INFO if record.name in ALWAYS else logging.WARNING, logging.INFO, logging.DEBUG)
        return record.levelno >= (least[min(self.verbose, 2)] if self.verbose >= 0 else logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line above the bars of tqdm, if there are any."""
        bars = sys.modules.get("tqdm")
        with bars.tqdm.external_write_mode(sys.stderr) if bars else nullcontext():
            super().emit(record)


def configure(verbose: int, file: Path | None = None) -> None:
    """Log to standard error, more with higher `verbose` (-1 is quiet), and everything to a file.

    Raises:
        typer.BadParameter: if the file cannot be written.
    """
    for old in [handler for handler in log.handlers if isinstance(handler, _StderrHandler | logging.FileHandler)]:
        log.removeHandler(old)
        old.close()
    log.addHandler(_StderrHandler(verbose))
    if file is not None:
        try:
            written = logging.FileHandler(file, encoding="utf-8")
        except OSError as fault:
            raise typer.BadParameter(f"cannot write {file}{because(fault)}", param_hint="--log-file") from fault
        written.setFormatter(logging.Formatter(TIMED))
        log.addHandler(written)
    log.setLevel(logging.DEBUG if file is not None or verbose > 1 else logging.INFO if verbose >= 0 else logging.ERROR)
    logging.getLogger("graphprune.bars").setLevel(logging.NOTSET if verbose >= 0 else logging.CRITICAL)


def flags_first(words: Sequence[str]) -> list[str]:
    """Command line with the flags of logging moved before the name of the command."""
    front, rest, words = list[str](), list[str](), list(words)
    while words and words[0] != "--":
        word = words.pop(0)
        if word in SWITCHES or word.startswith("--log-file="):
            front.append(word)
        elif word == "--log-file" and words:
            front += [word, words.pop(0)]
        else:
            rest.append(word)
    return front + rest + words
