"""A run that is killed, starved of room or damaged, and repeated until it is done: what tests of faults share."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from tests.processes import Forked, Stop

ONE = (sys.executable,)
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PHASES = ("starting", "calibrating", "refitting", "verifying", "saving", "done")
RESUMED = re.compile(r"(\d+) of \d+ steps were finished before")
TIMED = ("report.json", "report.html", "README.md")  # they tell when, and how long
GRACE = 600  # seconds for what takes some on a machine that is busy with other things


class Process(Protocol):
    """What subprocess and multiprocessing have in common here."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


@dataclass
class Job:
    """One command, always the same; its output is `place` / out, and nothing else may be left in `place`."""

    model: Path
    text: Path
    place: Path
    more: tuple[str, ...] = ()
    start: tuple[str, ...] = ()  # empty: forked
    errors: Path = field(init=False)

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        self.errors = self.place.with_name(f"{self.place.name}.stderr")

    @property
    def out(self) -> Path:
        return self.place / "out"

    @property
    def run(self) -> Path:
        """The workspace."""
        return self.place / ".out.run"

    def begin(self, limit: int | None = None, stop: Stop | None = None) -> Process:
        """Start the command; only forked, it can send itself a signal."""
        self.errors.write_bytes(b"")
        self.before = frozenset(self._files())
        options = ("--sparsity", "0.2", "--align", "1", "--calibration", str(self.text), "--output", str(self.out))
        words = ["prune", str(self.model), *options, *self.more]
        if not self.start:
            return Forked(words, self.errors, limit, stop=stop)
        with self.errors.open("ab") as file:
            command, settings = [*self.start, "-m", "graphprune", *words], {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(command, env=settings, stdout=file, stderr=file)

    def finish(self, limit: int | None = None) -> int:
        """Run it to its end, and return its exit status."""
        return self.begin(limit).wait()

    def messages(self) -> str:
        """Standard error of the last run."""
        return self.errors.read_text(errors="replace")

    def phase(self) -> str:
        """Where the run that was started last is, known from its files and messages."""
        new, messages = self._files() - self.before, self.messages()
        if self.out.exists():
            return "done"
        if any(name.startswith(".unfinished-") for name in new):
            return "saving"
        if any("-refit" in name for name in new) or "-refit: " in messages:
            return "verifying" if self.tables() >= self.last > 0 else "refitting"
        if any("-calibrate" in name or "values" in name for name in new) or "-calibrate: " in messages:
            return "calibrating"
        return "starting"

    def _files(self) -> set[str]:
        """All that there is, but for what is in folders that are being removed."""
        found, folders = set[str](), [self.place]
        while folders:
            try:
                entries = list(folders.pop().iterdir())
                folders += [path for path in entries if path.is_dir()]
            except FileNotFoundError:
                continue
            found |= {path.relative_to(self.place).as_posix() for path in entries}
        return found

    last: int = 0  # steps of the refit, where that is known
    before: frozenset[str] = frozenset()  # what there was when the last run was started

    def tables(self) -> int:
        """The finished steps of the refit."""
        return len(list(self.run.glob("0/*-refit/*.json")))

    def bits(self) -> dict[str, bytes]:
        """All of the output but what tells of the run itself."""
        return {path.name: path.read_bytes() for path in self.out.iterdir() if path.name not in TIMED}

    def left(self) -> list[str]:
        """What there is in the place."""
        return sorted(path.name for path in self.place.iterdir())

    def again(self) -> None:
        """Leave nothing of what was done."""
        shutil.rmtree(self.place)
        self.place.mkdir()


def watched(job: Job) -> dict[str, float]:
    """Run a job to its end; return the seconds in every phase."""
    process, spent, then, tables, since = job.begin(), dict.fromkeys(PHASES, 0.0), time.monotonic(), 0, 0.0
    job.last = sys.maxsize  # all that comes after the last step of the refit is told apart at the end
    while process.poll() is None:
        at, now = job.phase(), time.monotonic()
        spent[at] += now - then
        since = 0.0 if job.tables() > tables else since + (now - then) * (at == "refitting")
        tables, then = max(tables, job.tables()), now
        time.sleep(0.002)
    assert process.wait() == 0, job.messages()
    job.last = tables
    return {**spent, "refitting": spent["refitting"] - since, "verifying": since}


@dataclass
class Storm:
    """Kills at random moments, and what became of them."""

    job: Job
    seconds: dict[str, float]
    moments: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    resumed: int = 0
    wrong: int = 0

    def blow(self, kills: int, expected: dict[str, bytes], between: Callable[[], None] = lambda: None) -> None:
        """Repeat the command, and kill it each time, until there were so many kills; begin anew whenever it is done."""
        while self.kills.total() < kills:
            killed = self._attempt()
            if self.job.out.exists():
                self._judge(expected, killed)
            else:
                between()
        while not self.job.out.exists():
            self._attempt(spare=True)
        self._judge(expected, False)

    def _attempt(self, spare: bool = False) -> bool:
        """Start the command, and kill it at a random moment of a random phase. Was it killed?"""
        process = self.job.begin()
        at = "done" if spare else self.moments.choices(PHASES[:-1], weights=(1, 8, 5, 2, 2))[0]
        ended = until(process, lambda: PHASES.index(self.job.phase()) >= PHASES.index(at)) if not spare else False
        if not spare and not ended:
            time.sleep(self.moments.random() ** 2 * self.seconds.get(at, 0))
        killed = not spare and process.poll() is None
        if killed:
            self.kills[self.job.phase()] += 1
            self._kill(process)
        status = process.wait()
        self.resumed += sum(int(n) for n in RESUMED.findall(self.job.messages()))
        assert killed or status == 0, self.job.messages()
        return killed

    def _kill(self, process: Process) -> None:
        """Kill a process; of several that work together one of them, or all."""
        workers = list(family(process.pid))
        one = [self.moments.choice(workers)] if workers and self.moments.random() < 0.5 else []
        for victim in one or [psutil.Process(process.pid), *workers]:
            try:
                victim.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs([] if one else workers, timeout=GRACE)

    def _judge(self, expected: dict[str, bytes], killed: bool) -> None:
        """Compare a finished run with an uninterrupted one, and begin anew."""
        self.runs += 1
        self.wrong += self.job.bits() != expected
        if killed:  # after the output got its name: there is nothing left to do but to tidy up
            assert self.job.finish() != 0 and "exists already" in self.job.messages()
        assert self.job.left() == ["out"], self.job.messages()
        self.job.again()

    def __str__(self) -> str:
        return (
            f"{self.kills.total()} kills ({', '.join(f'{n} {at}' for at, n in sorted(self.kills.items()))}), "
            f"{self.resumed} steps found finished, {self.runs} runs completed, {self.wrong} with other bits"
        )


def family(pid: int) -> Iterator[psutil.Process]:
    """The processes that torchrun has started."""
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if "graphprune" in child.cmdline():
                yield child
        except psutil.NoSuchProcess:
            continue


def until(process: Process, reached: Callable[[], bool]) -> bool:
    """Wait for something; True if the process ended before."""
    while not reached():
        if process.poll() is not None:
            return True
        time.sleep(0.002)
    return False


def stop_after(job: Job, steps: str, number: int) -> int:
    """Run a job until it has finished one step of a kind, and send it a signal; return its exit status."""
    return job.begin(stop=Stop(number, f"-{steps}/", files=1)).wait()


def kill_after(job: Job, steps: str) -> None:
    """Run a job until it has finished one step of a kind, and kill it."""
    assert stop_after(job, steps, signal.SIGKILL) == -signal.SIGKILL, job.messages()


def damage(path: Path, moments: random.Random) -> str:
    """Flip a bit of a file, or cut it."""
    content = bytearray(path.read_bytes())
    place = moments.randrange(len(content))
    if moments.random() < 0.5:
        content[place] ^= 1 << moments.randrange(8)
        path.write_bytes(content)
        return "flipped"
    path.write_bytes(content[:place])
    return "cut"
