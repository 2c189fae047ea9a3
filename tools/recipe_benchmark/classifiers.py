"""One run on a classifier, in a process of its own, and the table of all."""

import argparse
import re
import statistics
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import graphprune as gp
from graphprune.errors import GraphpruneError, reason_of
from graphprune.evaluation.perplexity import classify, logits
from graphprune.support import option_text
from graphprune.support.memory import peak_memory
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.recipes.catalogue import RECIPES
from graphprune.workflows.recipes.recipe import pipeline
from tools.recipe_benchmark.record import DENSE, Record, Run
from tools.recipe_benchmark.subjects import SUBJECTS, Batch, Subject

TEST = "test"  # the name of the one set of questions
HEALED = re.compile(r"(.+)\+heal(?:\{(.*)\})?")  # a method with recovery, and options of it


def work(run: Run, options: argparse.Namespace, pipe: Connection) -> None:
    """Prune and measure, and send the record."""
    record = Record(run)
    try:
        subject = SUBJECTS[options.subject](options)
        program = gp.trace(subject.module, *subject.example)
        start, small = perf_counter(), program
        method, training = recovery(run.recipe)
        if run.recipe != DENSE:
            whole, counted = program.count(), count(program, subject.counted)
            others = tuple(name for name in program.parameters if not fnmatch(name, subject.counted))
            share, drawn = run.sparsity * counted / whole, subject.draw(run.samples, run.seed)
            small = passes(method, drawn, sparsity=share, seed=run.seed, protect=others)(program)
            record.removed = 1 - count(small, subject.counted) / counted
        record.seconds, record.memory, record.parameters = perf_counter() - start, peak_memory(), small.count()
        module = small.module()
        model = module if training is None else healed(module, subject, options.healed, seed=run.seed, **training)
        record.seconds = perf_counter() - start
        record.right[TEST] = list(classify(model, subject.test).right)
    except GraphpruneError as fault:
        record.fault = f"{type(fault).__name__}: {reason_of(fault)}"
    pipe.send(record)


def recovery(text: str) -> tuple[str, dict[str, Any] | None]:
    """Method without its recovery, and the options of that, as in ``best+heal{train=norms}``; None without one."""
    found = HEALED.fullmatch(text)
    if found is None:
        return text, None
    pairs = [part.partition("=") for part in option_text.split(found[2] or "", ",") if part]
    return found[1], {name.strip(): option_text.read(value.strip(), Any) for name, _, value in pairs}


def healed(module: nn.Module, subject: Subject, items: int, seed: int, **options: Any) -> nn.Module:
    """Module after one epoch on labelled items towards the dense one, which trains the weights that are counted."""
    for name, weight in module.named_parameters():
        weight.data = weight.data.clone()  # those of the program must not change
        weight.requires_grad_(fnmatch(name, subject.counted))

    def forward(model: Any, batch: Batch) -> Tensor:
        return logits(model(*batch[0][0], **batch[0][1]), 2)

    settings: Any = {"epochs": 1, "seed": seed, **options}
    gp.heal(module, teacher=subject.module, data=subject.draw(items, seed), forward=forward, **settings)
    return module


def count(program: gp.Program, glob: str) -> int:
    """How many parameters have names that match."""
    shapes = program.shapes()
    return sum(torch.Size(shapes[name]).numel() for name in program.parameters & shapes.keys() if fnmatch(name, glob))


def passes(method: str, drawn: Sequence[Batch], **options: Any) -> gp.Pipeline:
    """The pipeline of a recipe's name, or of ``score/allocation`` or ``score/allocation/passes after the cut``."""
    calls: Any = tuple(call for call, _ in drawn)

    def loss(output: Any, i: int) -> Tensor:
        return cross_entropy(logits(output, 2), drawn[i][1])

    common: Any = {"output": "", "destination": "free", "align": 1, "batches": calls, "loss": loss, **options}
    if method in RECIPES:
        return pipeline(PruneOptions("", recipe=method, **common))
    score, allocation, *after = method.split("/")
    text = " | ".join(["analyze | calibrate | score | allocate | select | rewrite", *after, "verify"])
    return pipeline(PruneOptions("", pipeline=text, score=score, allocation=allocation, **common))


def table(records: Sequence[Record]) -> Iterator[str]:
    """One row a method and sparsity: the median over seeds with the range, also relative to the dense accuracy."""
    done = [record for record in records if not record.fault]
    dense = next((_accuracy(record) for record in done if record.run.recipe == DENSE), None)
    yield "| method | parameters removed | accuracy | relative to dense | seeds | time |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for run in dict.fromkeys((record.run.recipe, record.run.sparsity) for record in done):
        rows = [record for record in done if (record.run.recipe, record.run.sparsity) == run]
        accuracies = [_accuracy(record) for record in rows]
        middle = statistics.median(accuracies)
        spread = f" ({min(accuracies):.2%} to {max(accuracies):.2%})" if len(accuracies) > 1 else ""
        kept = f"{middle / dense:.1%}" if dense else ""
        gone, seconds = (statistics.median(getattr(r, name) for r in rows) for name in ("removed", "seconds"))
        yield f"| `{run[0]}` | {gone:.1%} | {middle:.2%}{spread} | {kept} | {len(rows)} | {seconds:.0f} s |"
    for record in (record for record in records if record.fault):
        yield f"\n`{record.run.recipe}` at {record.run.sparsity:.0%}, seed {record.run.seed}: {record.fault}"


def _accuracy(record: Record) -> float:
    right = record.right[TEST]
    return sum(right) / len(right)
