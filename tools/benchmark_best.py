"""Time and memory of recipes, and of two bare forward passes over the same calibration windows, in one run.

Usage: .venv/bin/python tools/benchmark_best.py MODEL TEXT [--recipes best fasp] [--samples 128] [--length 512]

Every row is a process of its own, so that its peak memory is its own: anonymous memory beyond that of the loaded
program. Rows follow one another, so that none slows another.
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import graphprune as gp
from graphprune.evaluation.perplexity import logits_function
from graphprune.huggingface import model_folder
from graphprune.pipeline import Timings
from graphprune.statistics import texts
from graphprune.support.memory import peak_memory, watch_peak
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.recipes.recipe import pipeline

FORWARD = "two forward passes"
BATCH = 4  # windows
GIB = 2**30


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["fasp", "best"])
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--destination", default="free")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    print("| run | seconds | times two forward passes | peak of the run | peak of the process | passes |")
    print("|---|---|---|---|---|---|")
    bare = 0.0
    for name in (FORWARD, *options.recipes):
        row = alone(name, options)
        bare = bare or row["seconds"]
        passes = ", ".join(f"{step} {seconds:.0f} s {peak / GIB:.2f} GiB" for step, seconds, peak in row["passes"])
        cells = (f"{row['seconds']:.0f}", f"{row['seconds'] / bare:.2f}", *(f"{row[n] / GIB:.2f} GiB" for n in PEAKS))
        print(f"| {name} | {' | '.join(cells)} | {passes} |", flush=True)


PEAKS = ("held", "process")


def alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        row: dict[str, Any] = pool.apply(work, (name, options))
    return row


def work(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of a recipe, or of the forward passes."""
    program = gp.load(options.model)
    start = time.perf_counter()
    with watch_peak() as peak:
        timings = forward(program, options) if name == FORWARD else prune(program, name, options)
    return {"seconds": time.perf_counter() - start, "held": peak.bytes, "process": peak_memory(), "passes": timings}


def forward(program: gp.Program, options: argparse.Namespace) -> Sequence[tuple[str, float, int]]:
    """Run all windows twice through the dense model."""
    assert program.source is not None
    tokenizer = model_folder.tokenizer(program.source.texts)
    ids = texts.samples(tokenizer, texts.read(options.text), options.samples, options.length, 0)
    call = logits_function(program)
    with torch.inference_mode():
        for part in (*torch.split(ids, BATCH), *torch.split(ids, BATCH)):
            call(part)
    return ()


def prune(program: gp.Program, recipe: str, options: argparse.Namespace) -> Sequence[tuple[str, float, int]]:
    """Run a recipe in memory; seconds and peak memory of each pass."""
    run = PruneOptions(
        str(options.model), recipe=recipe, sparsity=options.sparsity, destination=options.destination, align=1,
        calibration=options.text, samples=options.samples, length=options.length, output="unused",
    )  # fmt: skip
    timings = pipeline(run)(program).fact(Timings)
    return [(step, seconds, peak) for (step, seconds), (_, peak) in zip(timings.seconds, timings.memory, strict=True)]


if __name__ == "__main__":
    main()
