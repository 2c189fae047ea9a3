"""Prune a language model, heal it, and print its perplexity against the tokens of the training.

Usage: .venv/bin/python tools/benchmark_healing.py MODEL --calibration C4.jsonl.gz[0:500] --data C4.jsonl.gz[0:1500] \
           --evaluate WIKITEXT.raw.gz C4.jsonl.gz[1500:2000] --sparsity 0.2 --tokens 100k 300k 1M --work FOLDER \
           [--questions HELLASWAG.jsonl.gz PIQA.jsonl.gz --first 200] [--write]

MODEL is a folder or a .gguf file. Every number of tokens is a training of its own from the same pruned model, with its
own schedule, and a point of the curve. What is in FOLDER already is not run again, and a killed training continues.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune as gp
from graphprune.evaluation import multiple_choice, perplexity
from graphprune.huggingface import model_folder
from tools.dataset_names import dataset, perplexity_title
from tools.documents import fill

NAME, LINES = "benchmark_healing", "perplexities.jsonl"


def main() -> None:
    """Run what is not known yet, keep it, and print the table."""
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(table(list(rows(options)), options.evaluate, options.questions))
    print(lines)
    if options.write:
        fill(NAME, lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--calibration", required=True, metavar="TEXT")
    parser.add_argument("--data", required=True, nargs="+", metavar="TEXT", help="to train on")
    parser.add_argument("--evaluate", required=True, nargs="+", metavar="TEXT")
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--destination", help="of the pruned model; stock by default")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=64, help="of each text, to measure perplexity on")
    parser.add_argument("--questions", nargs="*", default=[], metavar="FILE", help="multiple-choice questions")
    parser.add_argument("--first", type=int, default=200, help="so many of the questions")
    parser.add_argument("--tokens", nargs="+", default=["100k", "300k", "1M"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--train", default="all")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--evaluations", type=int, default=20, help="measurements of the held-out loss in a training")
    parser.add_argument("--held-out", type=int, default=32, help="windows that measure it")
    parser.add_argument("--autocast", action="store_true", help="multiply matrices in bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, required=True, help="the folder that keeps models and figures")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    return parser.parse_args()


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The dense model, the pruned one, and the healed ones: name, tokens a second, and a perplexity for each text."""
    yield measured("dense", options.model, options)
    pruned = options.work / "pruned"
    if not pruned.is_dir():
        gp.prune(
            options.model, recipe=options.recipe, sparsity=options.sparsity, calibration=options.calibration,
            samples=options.samples, length=options.length, autocast=options.autocast, output=pruned,
            destination=options.destination,
        )  # fmt: skip
    yield measured("pruned", pruned, options)
    for tokens in options.tokens:
        healed = options.work / f"{options.train}-{tokens}"
        if not healed.is_dir():
            gp.heal(
                pruned, teacher=options.model, data=options.data, tokens=tokens, length=options.length,
                batch=options.batch, train=options.train, rate=options.rate, autocast=options.autocast,
                device=options.device, evaluations=options.evaluations, held_out=options.held_out, output=healed,
            )  # fmt: skip
        record = gp.Report.load(healed).healing
        yield {**measured(healed.name, healed, options), "speed": record["tokens_per_second"]}


def measured(name: str, model: str | Path, options: argparse.Namespace) -> dict[str, Any]:
    """Perplexities of a model, from the file that keeps them if they are known."""
    file = options.work / LINES
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    key = [options.length, options.windows, *options.evaluate]
    key += [options.first, *options.questions] if options.questions else []
    for line in known:
        if (line["name"], line["key"]) == (name, key):
            return dict(line)
    values = [
        gp.evaluate(model, t, length=options.length, windows=options.windows).perplexity for t in options.evaluate
    ]
    line = {"name": name, "key": key, "perplexity": values, "accuracy": accuracies(model, options)}
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")
    return line


def accuracies(model: str | Path, options: argparse.Namespace) -> list[float]:
    """Length-normalized accuracies on the first questions of each file."""
    if not options.questions:
        return []
    program = gp.load(model)
    tokenizer = model_folder.tokenizer(perplexity.tokenizer_folder(program))
    parts = (multiple_choice.read(file)[: options.first] for file in options.questions)
    right = [list(multiple_choice.accuracy(program, tokenizer, part).right_norm) for part in parts]
    return [sum(answers) / len(answers) for answers in right]


def table(lines: list[dict[str, Any]], texts: list[str], questions: list[str]) -> list[str]:
    """Rows of the figures in Markdown; each perplexity also as a multiple of that of the dense model."""
    dense = lines[0]["perplexity"]
    names = [perplexity_title(text) for text in texts] + [f"{dataset(file)} accuracy" for file in questions]
    head = ["| model | " + " | ".join(names) + " | tokens a second |", "|---" * (len(names) + 2) + "|"]
    cells = [
        [f"{value:.2f} ({value / start:.2f}x)" for value, start in zip(line["perplexity"], dense, strict=True)]
        + [f"{value:.1%}" for value in line.get("accuracy", ())]
        for line in lines
    ]
    speeds = [f"{line['speed']:,.0f}" if "speed" in line else "-" for line in lines]
    return head + [
        f"| {line['name']} | {' | '.join(row)} | {speed} |"
        for line, row, speed in zip(lines, cells, speeds, strict=True)
    ]


if __name__ == "__main__":
    main()
