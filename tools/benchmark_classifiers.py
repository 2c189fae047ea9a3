"""Prune a classifier in several ways, with several draws of calibration data, and measure how often it is right.

Usage: .venv/bin/python tools/benchmark_classifiers.py encoder --model FOLDER [--base FOLDER] \
           --train TRAIN.tsv.gz --test DEV.tsv.gz --sparsity 0.5 --lines FILE.jsonl --methods METHOD...
       .venv/bin/python tools/benchmark_classifiers.py network --model ResNet20.safetensors \
           --train TRAIN.bin --test TEST.bin --sparsity 0.3 0.5 --lines FILE.jsonl --methods METHOD...

A method is the name of a recipe, or a score, an allocation, and the passes after the cut, if there are any:
flap/uniform, or flap/global/refit{by=affine},batch-norm-statistics. With +heal at its end, one epoch of `gp.heal`
towards the dense model follows, on `--healed` items; options of `gp.heal` may follow, as in best+heal{train=norms}.
Every run is a process of its own. What is in the file of JSON lines already is not run again. Of an encoder, the
sparsity is that of its blocks, without the embeddings, and healing trains the weights of the blocks.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from tools.documents import fill
from tools.recipe_benchmark.alone import alone, records
from tools.recipe_benchmark.classifiers import table, work
from tools.recipe_benchmark.record import DENSE, Run
from tools.recipe_benchmark.subjects import SUBJECTS


def main() -> None:
    """Run what is not known yet, keep it, and print the table."""
    options = arguments()
    found = records(runs(options), options.lines, partial(alone, work, options=options))
    lines = "\n".join(table(found))
    print(lines)
    if options.write:
        fill(options.table or f"benchmark_classifiers_{options.subject}", lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="a folder with the tokenizer, and weights that the model's lacks")
    parser.add_argument("--train", type=Path, required=True, help="calibration is drawn from it")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["fasp"], metavar="METHOD")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=2048, help="sentences or images that calibrate")
    parser.add_argument("--healed", type=int, default=20000, help="sentences or images of the epoch of a method +heal")
    parser.add_argument("--lines", type=Path, required=True, help="the file that keeps the records")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    parser.add_argument("--table", help="its name there; benchmark_classifiers_SUBJECT by default")
    return parser.parse_args()


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """The dense model, and every method at every sparsity with every seed."""
    yield Run(DENSE, 0.0, 0, 0)
    for sparsity in options.sparsity:
        for method in options.methods:
            yield from (Run(method, sparsity, options.samples, 0, seed) for seed in options.seeds)


if __name__ == "__main__":
    main()
