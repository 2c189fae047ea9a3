"""Claims of goals and an independent evaluation of each, as a table.

Usage: .venv/bin/python tools/benchmark_goals.py decoder MODEL TEXT OTHER_TEXT [--goal GOAL...] [options of prune]
       .venv/bin/python tools/benchmark_goals.py network WEIGHTS TRAIN TEST [--goal GOAL...]
       .venv/bin/python tools/benchmark_goals.py encoder FOLDER TRAIN TEST --base FOLDER [--goal GOAL...]

A decoder is pruned to each goal (several goals in one are joined by " and "), with the first text, and evaluated on the
other one by reloading the saved folder. A network of images or an encoder of sentences is pruned with a part of its
training data, and evaluated on its test data. A larger model takes the same command and a quiet machine:

    .venv/bin/python tools/benchmark_goals.py decoder SMOLLM2 c4.train.jsonl.gz wikitext2.test.raw.gz \
        --goal "perplexity <= 1.2x" --recipe best --destination free --samples 128 --length 512
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import graphprune as gp
from graphprune.errors import GraphpruneError
from graphprune.evaluation.perplexity import classify, logits
from graphprune.workflows.goals.goal_data import accuracy
from graphprune.workflows.goals.goal_outcome import weight_bytes
from graphprune.workflows.goals.goal_timing import in_turns
from tools.recipe_benchmark.subjects import SUBJECTS

CALIBRATED, CONFIRMED = 256, 1024  # labelled inputs of a classifier
HEADS = ("goals", "removed", "claimed", "evaluated independently", "seconds")


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("decoder", "network", "encoder"))
    for name in ("model", "train", "test"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--base", type=Path, help="a folder with the tokenizer and the weights that an encoder lacks")
    parser.add_argument("--goal", action="append", default=[])
    parser.add_argument("--recipe", default="")
    parser.add_argument("--destination")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=64)
    options = parser.parse_args()
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for goals in options.goal:
        start = time.perf_counter()
        run = decoder if options.kind == "decoder" else classifier
        try:
            cells = run(options, goals.split(" and "))
        except GraphpruneError as fault:
            cells = ["-", f"refused: {fault}", "-"]
        print(f"| {goals} | {' | '.join(cells)} | {time.perf_counter() - start:.0f} |", flush=True)


def decoder(options: argparse.Namespace, goals: list[str]) -> list[str]:
    """Prune a decoder in files, and evaluate the saved folder."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "out"
        known: Any = {
            name: getattr(options, name) for name in ("recipe", "destination", "samples", "length", "windows")
        }
        result = gp.prune(
            options.model, output=output, goal=goals, text=options.train, align=1, quant=options.quant, **known
        )
        size = {"length": options.length, "windows": options.windows}
        quantized = output / options.quant
        folder = quantized if quantized.is_dir() else output
        both = [gp.evaluate(one, options.test, **size).perplexity for one in (options.model, folder)]
        facts = [f"perplexity {both[1] / both[0]:.3f}x ({both[0]:.3f} -> {both[1]:.3f})"]
        facts += [f"{weight_bytes(folder) / 1e6:.3f} MB of weights in files"]
        report = gp.Report.load(output)
        facts += [f"{report.budget_name} {report.amount}"] if report.amounts else []
        return [*claims(result.report), "; ".join(facts)]


def classifier(options: argparse.Namespace, goals: list[str]) -> list[str]:
    """Prune a classifier in memory with a part of its training data, and count right answers on its test data."""
    subject = SUBJECTS[options.kind](options)
    drawn = [({**dict(zip(("x",), call[0], strict=False)), **call[1], "labels": labels})
             for call, labels in subject.draw(CALIBRATED + CONFIRMED, 0)]  # fmt: skip
    dense = copy.deepcopy(subject.module)
    parts = list(split(drawn))
    result = gp.prune(
        subject.module, data=parts[0], test=parts[1], loss=loss, metric=accuracy, goal=goals, recipe=options.recipe
    )
    right = [classify(module, subject.test).accuracy for module in (dense, subject.module)]
    facts = [f"accuracy {right[1] / right[0]:.3f}x ({right[0]:.2%} -> {right[1]:.2%})"]
    args, kwargs = subject.test[0][0]
    before, after = in_turns(call_of(dense, args, kwargs), call_of(subject.module, args, kwargs))
    facts += [f"latency in torch {sorted(after)[6] / sorted(before)[6]:.2f}x"]
    return [*claims(result.report), "; ".join(facts)]


def claims(report: gp.Report) -> list[str]:
    """Share and claims of a run."""
    return [f"{report.sparsity_reached:.1%}", "; ".join(str(goal["text"]).partition(": ")[2] for goal in report.goals)]


def split(batches: list[dict[str, Tensor]]) -> Iterator[list[dict[str, Tensor]]]:
    """Batches that calibrate, then those that confirm."""
    count, at = 0, 0
    while count < CALIBRATED:
        count += len(batches[at]["labels"])
        at += 1
    yield from (batches[:at], batches[at:])


def loss(output: Any, batch: Any) -> Tensor:
    """Mean negative log likelihood of the labels."""
    return cross_entropy(logits(output, 2), batch["labels"])


def call_of(module: nn.Module, args: Any, kwargs: Any) -> Callable[[], object]:
    """Call without gradients."""

    def call() -> object:
        with torch.no_grad():
            return module(*args, **kwargs)

    return call


if __name__ == "__main__":
    main()
