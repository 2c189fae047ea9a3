"""Prune a language model, heal it, and print its perplexity against the tokens of the training.

Usage: .venv/bin/python tools/benchmark_healing.py MODEL --calibration C4.jsonl.gz[0:500] --data C4.jsonl.gz[0:1500] \
           --evaluate WIKITEXT.raw.gz C4.jsonl.gz[1500:2000] --sparsity 0.2 --tokens 100k 300k 1M --work FOLDER

MODEL is a folder or a .gguf file. Every number of tokens is a training of its own, with a schedule of its own, from the
same pruned model. What is in FOLDER already is not run again, and a killed training continues.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune as gp

LINES = "perplexities.jsonl"


def main() -> None:
    """Run what is not known yet, keep it, and print the table."""
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    print("\n".join(table(list(rows(options)), options.evaluate)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--calibration", required=True, metavar="TEXT")
    parser.add_argument("--data", required=True, nargs="+", metavar="TEXT", help="to train on")
    parser.add_argument("--evaluate", required=True, nargs="+", metavar="TEXT")
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=64, help="of each text, to measure perplexity on")
    parser.add_argument("--tokens", nargs="+", default=["100k", "300k", "1M"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--train", default="all")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--autocast", action="store_true", help="multiply matrices in bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, required=True, help="the folder that keeps models and figures")
    return parser.parse_args()


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The dense model, the pruned one, and the healed ones: name, tokens a second, and a perplexity for each text."""
    yield measured("dense", options.model, options)
    pruned = options.work / "pruned"
    if not pruned.is_dir():
        gp.prune(
            options.model, recipe=options.recipe, sparsity=options.sparsity, calibration=options.calibration,
            samples=options.samples, length=options.length, autocast=options.autocast, output=pruned,
        )  # fmt: skip
    yield measured("pruned", pruned, options)
    for tokens in options.tokens:
        healed = options.work / f"{options.train}-{tokens}"
        if not healed.is_dir():
            gp.heal(
                pruned, teacher=options.model, data=options.data, tokens=tokens, length=options.length,
                batch=options.batch, train=options.train, rate=options.rate, autocast=options.autocast,
                device=options.device, output=healed,
            )  # fmt: skip
        record = gp.Report.load(healed).healing
        yield {**measured(healed.name, healed, options), "speed": record["tokens_per_second"]}


def measured(name: str, model: str | Path, options: argparse.Namespace) -> dict[str, Any]:
    """Perplexities of a model, from the file that keeps them if they are known."""
    file = options.work / LINES
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    key = [options.length, options.windows, *options.evaluate]
    for line in known:
        if (line["name"], line["key"]) == (name, key):
            return dict(line)
    values = [
        gp.evaluate(model, t, length=options.length, windows=options.windows).perplexity for t in options.evaluate
    ]
    line = {"name": name, "key": key, "perplexity": values}
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")
    return line


def table(lines: list[dict[str, Any]], texts: list[str]) -> list[str]:
    """Rows of the figures in Markdown; each perplexity also as a multiple of that of the dense model."""
    dense = lines[0]["perplexity"]
    names = [Path(text).name for text in texts]
    head = ["| model | " + " | ".join(names) + " | tokens a second |", "|---" * (len(names) + 2) + "|"]
    cells = [
        [f"{value:.2f} ({value / start:.2f}x)" for value, start in zip(line["perplexity"], dense, strict=True)]
        for line in lines
    ]
    speeds = [f"{line['speed']:,.0f}" if "speed" in line else "-" for line in lines]
    return head + [
        f"| {line['name']} | {' | '.join(row)} | {speed} |"
        for line, row, speed in zip(lines, cells, speeds, strict=True)
    ]


if __name__ == "__main__":
    main()
