"""Run models in processes of their own, some at a time, each with a time limit."""

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic

import psutil

from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.record import LATE, Record
from tools.zoo_benchmark.work import work

Task = tuple[str, str]  # tool and model
LOOK = 0.5  # seconds between looks at the time
IDLE = 10  # so much slower than its processor time a process may be


@dataclass
class _Job:
    process: BaseProcess
    pipe: Connection
    last: Record
    start: float = field(default_factory=monotonic)

    def seconds(self) -> float:
        """The processor time it took so far, whatever else runs on the machine; a tenth of the time it only waited."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0  # it ended
        return max(times.user + times.system, (monotonic() - self.start) / IDLE)

    def read(self) -> bool:
        """Take in what the process sent; False when it will send no more."""
        try:
            while self.pipe.poll():
                self.last = self.pipe.recv()
        except EOFError:
            return False
        return True


def run_all(tasks: Sequence[Task], jobs: int, limit: float, goals: Mapping[str, Goal]) -> Iterator[Record]:
    """The record of every task as it gets ready; `limit` is in seconds of processor time a task, `goals` by tool."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the server, which imports torch
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.zoo_benchmark.preload"])
    waiting, running = list(reversed(tasks)), list[_Job]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(context, waiting.pop(), goals))
            wait([job.pipe for job in running], LOOK)
            for job in list(running):
                late = job.seconds() > limit
                if not job.read() or late:
                    running.remove(job)
                    yield _finish(job, limit if late else None)
    finally:
        for job in running:
            job.process.kill()


def _start(context: multiprocessing.context.ForkServerContext, task: Task, goals: Mapping[str, Goal]) -> _Job:
    """A process for one model."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*task, goals[task[0]], sender))
    process.start()
    sender.close()
    return _Job(process, receiver, Record(*task))


def _finish(job: _Job, limit: float | None) -> Record:
    """The last word of a process that ended, or that is ended now because of its limit."""
    if limit is not None:
        job.process.kill()
    job.process.join()
    if job.last.stage != "done" and not job.last.fault and not job.last.exact:
        died = f"process died with exit code {job.process.exitcode}"
        job.last.fault = f"{died if limit is None else f'{LATE} of {limit:.0f} s'} in stage {job.last.stage!r}"
    return job.last
