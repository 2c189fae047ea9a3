"""Split the feed-forward layers of a language model into experts, and cut it to the same multiply-accumulates.

Usage: .venv/bin/python tools/benchmark_split.py --model FOLDER --calibration FIRST.txt --evaluate SECOND.txt \\
           [--write]

Experts by co-activation and by chance, with these shares of them active, and recipe fasp at the
multiply-accumulates of each.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from graphprune.evaluation.perplexity import PerplexityTest
from graphprune.frontends.loading import load
from graphprune.ir.program import ExpertSplit, Program
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.experts.split_experts import SplitExperts
from graphprune.passes.experts.split_walk import WAYS
from graphprune.pipeline import Pipeline
from tools.documents import fill

CUT = "score{{by=fasp}} | allocate{{sparsity={share},budget=macs}} | select | rewrite | refit | verify"


def main() -> None:
    """Measure, and print the table; with --write, put it into its document, too."""
    options = arguments()
    table = "\n".join(rows(options))
    if options.write:
        fill("benchmark_split", table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--calibration", required=True, metavar="TEXT")
    parser.add_argument("--evaluate", required=True, metavar="TEXT")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 43])
    parser.add_argument("--active", type=float, nargs="+", default=[0.75, 0.5, 0.25], help="shares of the experts")
    parser.add_argument("--samples", type=int, default=64, help="windows to calibrate on")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=64, help="windows to measure on")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    return parser.parse_args()


def rows(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table, each printed as soon as it is known."""
    dense = load(options.model)
    exam = PerplexityTest.of(dense, (options.evaluate,), options.length, options.windows)
    calibrate = Calibrate(options.calibration, options.samples, options.length, moments="full")
    start, whole = Pipeline((Analyze(), calibrate))(dense), macs(dense)
    yield printed("| active experts | active neurons | multiply-accumulates | by co-activation | by chance | fasp |")
    yield printed("|---|---:|---:|---:|---:|---:|")
    yield printed(f"| dense | 100.0% | 100.0% | {perplexity(exam, dense)} | | |")
    for experts, active in ((experts, round(part * experts)) for experts in options.experts for part in options.active):
        splits = [SplitExperts(experts, active, by=by)(start) for by in WAYS]
        cost = macs(splits[0]) / whole
        cut = Pipeline.parse(CUT.format(share=1 - cost), given=tuple(start.facts))(start)
        cells = " | ".join(perplexity(exam, each) for each in (*splits, cut))
        yield printed(f"| {active} of {experts} | {share(splits[0]):.1%} | {cost:.1%} | {cells} |")


def printed(line: str) -> str:
    print(line, flush=True)
    return line


def macs(program: Program) -> float:
    """Multiply-accumulates of the example inputs."""
    return sum(term.at({}) for term in analyze(program).terms["macs"])


def share(program: Program) -> float:
    """The share of the neurons of split layers that a token uses."""
    split = program.fact(ExpertSplit)
    whole = [split.original.shapes()[name] for name in split.sizes]
    left = sum((sizes.experts - sizes.active) * sizes.width for sizes in split.sizes.values())
    return 1 - left / sum(max(shape) for shape in whole)


def perplexity(exam: PerplexityTest, program: Program) -> str:
    """The perplexity on the text, in a cell."""
    return f"{next(iter(exam.perplexities(program).values())):.2f}"


if __name__ == "__main__":
    main()
