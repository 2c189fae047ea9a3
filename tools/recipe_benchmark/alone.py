"""A run in a process of its own, so that time and memory are its own and a crash ends nothing else."""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path

from tools.recipe_benchmark.record import Record, Run, append, read

#: Does a run as the options say, and sends its record.
Work = Callable[[Run, argparse.Namespace, Connection], None]


def alone(work: Work, run: Run, options: argparse.Namespace) -> Record:
    """The record of a run in a process of its own."""
    print(f"{run.recipe} at {run.sparsity:.0%}, seed {run.seed}", file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(run, options, sender))
    process.start()
    sender.close()
    try:
        record: Record = receiver.recv()
    except EOFError:
        process.join()
        record = Record(run, f"the process ended with exit code {process.exitcode}")
    process.join()
    return record


def records(wanted: Iterable[Run], lines: Path, measure: Callable[[Run], Record]) -> list[Record]:
    """The records of these runs: those that a file of JSON lines has, others measured and appended to it."""
    known = {record.run: record for record in read(lines)}
    results = []
    for run in wanted:
        if run not in known:
            known[run] = measure(run)
            append(lines, known[run])
        results.append(known[run])
    return results
