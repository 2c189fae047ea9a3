"""A progress bar on standard error, where somebody watches; in a notebook below the cell."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from graphprune.display import html
from graphprune.support import distributed

Step = Callable[..., None]
EVERY = 0.2  # seconds between two pictures in a notebook


@contextmanager
def progress(what: str, total: int) -> Iterator[Step]:
    """Show how far `what` has come and how long it still takes.

    The yielded function advances by one, or by its argument. Nothing is shown where standard error is neither a
    terminal nor a notebook, and nothing remains when the work is done.
    """
    console = Console(stderr=True)
    if console.is_jupyter:
        with _in_notebook(what, total) as step:
            yield step
        return
    hidden = not console.is_terminal or distributed.rank() > 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("/"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=total)

        def step(count: int = 1) -> None:
            bar.advance(task, count)

        yield step


@contextmanager
def _in_notebook(what: str, total: int) -> Iterator[Step]:
    """A bar of HTML, which wants no widgets."""
    from IPython import display as notebook  # a notebook has it

    display: Any = notebook.display

    start = time.monotonic()
    done, shown = 0, start
    place: Any = display(_picture(what=what, done=0, total=total, seconds=0.0, left=None), display_id=True)

    def step(count: int = 1) -> None:
        nonlocal done, shown
        done, now = done + count, time.monotonic()
        if place is not None and now - shown >= EVERY:
            shown = now
            seconds = now - start
            left = seconds * (total - done) / done if done else None
            place.update(_picture(what=what, done=done, total=total, seconds=seconds, left=left))

    try:
        yield step
    finally:
        if place is not None:
            place.update(_picture())


def _picture(**values: Any) -> Any:
    """The bar as IPython shows it; without values nothing."""
    from IPython import display as notebook

    made: Any = notebook.HTML
    return made(html.bare("progress.html", **values) if values else "")
