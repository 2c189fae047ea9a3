"""A progress bar on standard error, where somebody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Step = Callable[..., None]


@contextmanager
def progress(what: str, total: int) -> Iterator[Step]:
    """Show how far `what` has come and how long it still takes.

    The yielded function advances by one, or by its argument. Nothing is shown where standard error is no terminal,
    and nothing remains when the work is done.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("/"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def step(count: int = 1) -> None:
            bar.advance(task, count)

        yield step
