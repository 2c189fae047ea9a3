"""The edge of the program: errors become one message, an interrupt leaves nothing behind, output stays clean.

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
    """A command: `run` does the work with standard output closed, and what it returns prints the answer."""

    @wraps(run)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        with _told():
            with redirect_stdout(sys.stderr):  # whatever libraries and user code print is no answer
                show = run(*args, **kwargs)
                from graphprune.support import distributed

            if distributed.rank() == 0:
                show()
            sys.stdout.flush()

    return guarded


def print_json(thing: object) -> None:
    """One object on standard output."""
    from graphprune.reports.report import plain

    sys.stdout.write(json.dumps(plain(thing), indent=2, allow_nan=False) + "\n")


@contextmanager
def _told() -> Iterator[None]:
    """Turn what goes wrong into one message on standard error and an exit status."""
    try:
        yield
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except BrokenPipeError:  # the reader of our output has seen enough
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
    """What a user is told of an error."""
    known = fault if isinstance(fault, GraphpruneError) else failed_import(fault)
    if known is not None:
        return str(known)
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.filename}: {fault.strerror}" if fault.filename else fault.strerror
    if isinstance(fault, MemoryError):
        return "there is not enough memory for this model; close other programs or take a smaller one"
    return (
        f"an unexpected {type(fault).__name__} stopped the command{because(fault)}\n"
        "Set GRAPHPRUNE_DEBUG=1 to see where it comes from, and please report it."
    )


def prepare() -> None:
    """Let a request to stop clean up like an interrupt, and keep libraries from talking over the answer."""
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
