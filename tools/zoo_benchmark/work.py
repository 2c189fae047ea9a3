"""One model in a process of its own."""

import logging
import os
import traceback
import warnings
from multiprocessing.connection import Connection

import torch

from graphprune.errors import reason_of
from tools.zoo_benchmark import field, ours, torch_kirigami, torch_pruning
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.record import Record, Report
from tools.zoo_benchmark.subject import subject

PEERS = {tool.NAME: tool for tool in (torch_pruning, torch_kirigami)}
TOOLS = {ours.NAME: ours.run, ours.BUDGET: ours.run, **{name: tool.run for name, tool in PEERS.items()}}
TRACEBACK = 3000  # characters, the last ones


def work(tool: str, name: str, goal: Goal, pipe: Connection) -> None:
    """Let a tool prune a model, and send the record whenever a stage begins and at the end."""
    _be_quiet()
    torch.set_num_threads(1)
    report = Report(Record(tool, name), pipe.send)
    try:
        if name.startswith(field.PREFIX):
            field.run(name, report, goal)
        else:
            TOOLS[tool](subject(name), report, goal)
        if not report.record.fault:
            report.record.stage = "done"
    except Exception as fault:
        report.record.fault = f"{type(fault).__name__}: {reason_of(fault)}"
        report.record.traceback = traceback.format_exc()[-TRACEBACK:]
    pipe.send(report.record)


def _be_quiet() -> None:
    """Drop what the models and the tools print; the table is the output."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
