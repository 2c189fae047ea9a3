"""Progress: a bar where somebody watches, lines elsewhere, silence where it was ordered."""

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graphprune.display import progress as module
from graphprune.display.progress import progress

ROOT = Path(__file__).parents[2]
WORK = """
import time
from graphprune.display.progress import progress
with progress("outer", 4) as step:
    for _ in range(4):
        with progress("inner", 2) as inner:
            for _ in range(2):
                time.sleep(0.2)
                inner()
        step()
print("done")
"""


def worked(seconds: float = 0.35) -> None:
    with progress("working", 8) as step:
        step()
        step(3)
        time.sleep(seconds)


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging as it is where no command line has run."""
    log = logging.getLogger("graphprune")
    level = log.level
    monkeypatch.setattr(log, "handlers", [])
    log.setLevel(logging.NOTSET)
    yield
    log.setLevel(level)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.1)


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    worked(0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("often")
def test_without_a_terminal_there_is_a_line_from_time_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    worked()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and 2 <= len(lines) <= 4
    assert all(re.fullmatch(r"working: 4/8, 00:00 elapsed, 00:00 remaining", line) for line in lines), lines


@pytest.mark.usefixtures("often")
def test_a_line_comes_although_nothing_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", 8):
        time.sleep(0.25)
    assert "working: 0/8, 00:00 elapsed, ? remaining\n" in capsys.readouterr().err


@pytest.mark.usefixtures("often")
def test_lines_go_to_a_logger_that_shows_them(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "graphprune.progress"):
        worked()
    assert caplog.messages and all(line.startswith("working: 4/8") for line in caplog.messages)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("often")
def test_a_logger_for_errors_alone_silences_it(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "graphprune"):
        worked()
    assert (caplog.messages, capsys.readouterr().err) == ([], "")


@pytest.mark.usefixtures("often")
def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.support.distributed.rank", lambda: 1)
    worked()
    assert capsys.readouterr().err == ""


def test_an_error_inside_ends_the_thread() -> None:
    with pytest.raises(ZeroDivisionError), progress("working", 3):
        raise ZeroDivisionError
    assert "graphprune progress" not in [thread.name for thread in threading.enumerate()]


def test_a_terminal_shows_nested_bars_and_nothing_remains() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    spawn: Any = pytest.importorskip("pexpect").spawn
    shown = spawn(sys.executable, ["-c", WORK], env=environment, encoding="utf-8", dimensions=(24, 80)).read()
    for bar in (r"outer:\s+25%\|.*\| 1/4 \[00:0\d<", r"inner:\s+50%\|.*\| 1/2 \["):
        assert re.search(bar, shown), shown
    assert shown.rstrip().splitlines()[-1].rpartition("\r")[2].strip().endswith("done")
