"""Boundary of the command line: errors become one message, interrupts clean up, standard output has answers only.

This file imports no torch, so that help texts are shown at once.
"""

import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from io import TextIOWrapper
from types import FrameType
from typing import ParamSpec

import typer

from graphprune.errors import GraphpruneError, because
from graphprune.support.packages import failed_import

P = ParamSpec("P")

FAILED = 2
INTERRUPTED = 130

log = logging.getLogger("graphprune.cli")


def command(run: Callable[P, Callable[[], None]]) -> Callable[P, None]:
    """Decorate a command: `run` works with standard output redirected and returns a function that prints the result."""

    @wraps(run)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        with _report_errors():
            with redirect_stdout(sys.stderr):  # libraries and user code may print, too
                show = run(*args, **kwargs)
                from graphprune.support import distributed

            if distributed.rank() == 0:
                show()
            sys.stdout.flush()

    return guarded


def print_json(thing: object) -> None:
    """Print one object on standard output."""
    from graphprune.reports.report import plain

    sys.stdout.write(json.dumps(plain(thing), indent=2, allow_nan=False) + "\n")


@contextmanager
def _report_errors() -> Iterator[None]:
    """Convert an exception to one message on standard error and an exit status."""
    try:
        yield
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt as stop:
        log.debug("interrupted", exc_info=stop)
        typer.echo(f"interrupted: {str(stop) or 'no output was written'}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as fault:
        log.debug("stopped by an error", exc_info=fault)
        if os.environ.get("GRAPHPRUNE_DEBUG") == "1":
            traceback.print_exc()
        typer.echo(f"error: {message(fault)}", err=True)
        raise typer.Exit(FAILED) from None


def message(fault: Exception) -> str:
    """Message for an error."""
    known = fault if isinstance(fault, GraphpruneError) else failed_import(fault)
    if known is not None:
        return str(known)
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.filename}: {fault.strerror}" if fault.filename else fault.strerror
    if isinstance(fault, MemoryError):
        return "there is not enough memory for this model; close other programs or use a smaller model"
    return (
        f"an unexpected {type(fault).__name__} stopped the command{because(fault)}\n"
        "Set GRAPHPRUNE_DEBUG=1 to see its traceback, and please report it."
    )


def prepare() -> None:
    """Handle termination like an interrupt, and silence warnings and progress of libraries."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    if isinstance(sys.stdout, TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
        sys.stdout.reconfigure(errors="replace")
    if os.environ.get("GRAPHPRUNE_DEBUG") != "1":
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
