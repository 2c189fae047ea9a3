"""Compare exported folders in one run: size, speed, memory, and how much of the smaller product count is realised.

Usage: .venv/bin/python tools/benchmark_exports.py DENSE PRUNED [MORE...] [--text TEXT...] [--json FILE] [--write]
       .venv/bin/python tools/benchmark_exports.py DENSE PRUNED [MORE...] --labelled FILE [--after FILE...] ...

Each is a folder that `graphprune export` wrote, is run by the runtime of its target, and compared with the first one
that was written with the same options. Decoders read a prompt and write after it, classifiers are given labelled items,
one at a time. Since not all runtimes go into one environment, `--after` puts the rows of earlier runs of the same kind
before those of this. Runs of all are interleaved, so that a busy machine slows all of them alike; memory is measured in
a process of each one's own. Products are counted in ONNX files: those of weights, for one token, or for one image. What
is realised is the share of time saved, divided by the share of products saved.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from tools.documents import fill
from tools.export_benchmark.measure import Measured, measure
from tools.export_benchmark.table import table


def main() -> None:
    """Measure all folders, and print the table."""
    options = arguments()
    earlier = [Measured(**one) for file in options.after for one in json.loads(file.read_text(encoding="utf-8"))]
    found = earlier + measure(options)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n", encoding="utf-8")
    lines = "\n".join(table(found))
    print(lines)
    if options.write:
        fill(options.marker, lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--text", nargs="+", default=[], help="texts to measure perplexity on")
    parser.add_argument("--labelled", type=Path, help="lines of a sentence, a tab and its class; or images, in .bin")
    parser.add_argument("--tokenizer", type=Path, help="a folder that has it; that of the first export otherwise")
    parser.add_argument("--items", type=int, help="so many of the labelled items; all otherwise")
    parser.add_argument("--after", nargs="+", type=Path, default=[], help="files that --json wrote")
    parser.add_argument("--windows", type=int, default=16, help="windows of 512 tokens of each text")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens written after it")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--provider", default="CPUExecutionProvider")
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    parser.add_argument("--marker", default="benchmark_exports", help="the name of those comments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
