"""One run, in a process of its own, so that time and memory are its own."""

import argparse
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import graphprune as gp
from graphprune.errors import GraphpruneError, reason_of
from graphprune.evaluation import multiple_choice, perplexity
from graphprune.huggingface import model_folder
from graphprune.statistics import texts
from graphprune.statistics.collector import matmul_autocast, token_inputs
from graphprune.support.memory import peak_memory
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.recipes.recipe import pipeline
from tools.recipe_benchmark.record import DENSE, Record, Run

LENGTH = 512  # tokens of a window of the texts


def work(run: Run, options: argparse.Namespace, pipe: Connection) -> None:
    """Prune and measure, and send the record."""
    record = Record(run)
    try:
        program = gp.load(options.model)
        start = perf_counter()
        small = _pruned(program, run, options)
        record.seconds, record.memory = perf_counter() - start, peak_memory()
        with matmul_autocast(options.autocast):
            _measure(record, program, small, options)
    except GraphpruneError as fault:
        record.fault = f"{type(fault).__name__}: {reason_of(fault)}"
    pipe.send(record)


def _pruned(program: gp.Program, run: Run, options: argparse.Namespace) -> gp.Program:
    if run.recipe == DENSE:
        return program
    common = {name: getattr(options, name) for name in ("align", "destination", "calibration", "autocast")}
    own = {name: getattr(run, name) for name in ("recipe", "sparsity", "samples", "length", "seed")}
    return pipeline(PruneOptions(options.model, output="", **common, **own))(program)


def _measure(record: Record, program: gp.Program, small: gp.Program, options: argparse.Namespace) -> None:
    """Everything about the pruned program that does not depend on how it came about."""
    tokenizer = model_folder.tokenizer(perplexity.tokenizer_folder(program))
    record.parameters, record.removed = small.count(), 1 - small.count() / program.count()
    record.macs, record.cache = macs(small), gp.analyze(small).kv_cache_bytes
    for text in options.evaluate:
        windows = texts.windows(tokenizer, texts.read(text), LENGTH)[: options.windows]
        record.perplexity[text] = perplexity.perplexity(small, windows).perplexity
        print(f"{record.run.recipe}, {Path(text).name}: {record.perplexity[text]:.2f}", file=sys.stderr)
    for questions in options.questions:
        asked = multiple_choice.read(questions)[: options.first]
        record.right[questions] = list(multiple_choice.accuracy(small, tokenizer, asked).right_norm)


@torch.no_grad()
def macs(program: gp.Program) -> int:
    """Multiply-accumulates of a token in a window of the evaluation's length."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # others are not counted everywhere
        program.module()(**token_inputs(program, torch.zeros(1, LENGTH, dtype=torch.long)))
    return int(counter.get_total_flops()) // 2 // LENGTH
