"""Trim the vocabulary of a language model in several ways, and measure what that costs on held-out texts.

Usage: .venv/bin/python tools/benchmark_trim.py NAME --model MODEL --text TEXT... --held-out TEXT... \
           --ways coverage=0.9999 tokens=80000,predicted=16 [--write]

A way is the options of graphprune.trim. The folders are not kept. With --write, the table goes into the document that
has it under the name.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from graphprune.evaluation.bits_per_byte import windows_of_text
from graphprune.support.option_text import split
from graphprune.workflows.trimming.trim import TrimRun, source_folder
from graphprune.workflows.trimming.trim_options import Tokens
from graphprune.workflows.trimming.trim_record import Trimming
from tools.documents import fill

HEAD = ("tokens", "parameters", "MB", "remain whole", "bits per byte", "tokens per word")


def main() -> None:
    """Trim the model in every way, and print the table."""
    options = arguments()
    lines = "\n".join(table(list(trimmings(options))))
    print(lines)
    if options.write:
        fill(f"benchmark_trim_{options.name}", lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the table")
    parser.add_argument("--model", required=True, help="a folder or a GGUF file")
    parser.add_argument("--text", nargs="+", required=True, help="the corpus")
    parser.add_argument("--held-out", nargs="+", required=True)
    parser.add_argument("--ways", nargs="+", default=["coverage=0.9999"], metavar="OPTION=VALUE,...")
    parser.add_argument("--windows", type=int, default=8, help="of each held-out text")
    parser.add_argument("--length", type=int, default=512, help="tokens in a window, at most")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    return parser.parse_args()


def trimmings(options: argparse.Namespace) -> Iterator[tuple[str, Trimming]]:
    """Every way with its record; the original is measured once."""
    folder = source_folder(options.model)
    windows = {text: windows_of_text(text, options.length, options.windows) for text in options.held_out}
    costs = None
    for way in options.ways:
        run = TrimRun.of(folder, tokens(way), options.text)
        before = run.measured(windows if costs is None else {})
        before = before if costs is None else replace(before, costs=costs)
        costs = before.costs
        with tempfile.TemporaryDirectory() as output:
            made = run.fill(Path(output), before, windows)
        print(f"{way}\n{made}", file=sys.stderr, flush=True)
        yield way, made


def tokens(way: str) -> Tokens:
    """Options from their text."""
    values = dict(part.split("=") for part in split(way, ","))
    kinds = {"coverage": float, "mean_rows": lambda text: text == "true"}
    return Tokens(**{name: kinds.get(name, int)(value) for name, value in values.items()})


def table(made: list[tuple[str, Trimming]]) -> Iterator[str]:
    """Lines of a table: the original, and every way."""
    texts = list(made[0][1].texts)
    names = [f"{name}, {Path(text.split('[')[0]).name.split('.')[0]}" for name in HEAD[4:] for text in texts]
    yield f"| trim | {' | '.join([*HEAD[:4], *names])} |"
    yield f"|---|{'---|' * (4 + len(names))}"
    yield row("none", made[0][1], 0)
    yield from (row(f"`{way.replace(',', ' ')}`", one, 1) for way, one in made)


def row(name: str, made: Trimming, at: int) -> str:
    """A line of the table, from before (0) or after (1) a trim."""
    costs = [pair[at] for pair in made.texts.values()]
    firsts = [pair[0] for pair in made.texts.values()]
    bits = [
        f"{cost.bits_per_byte or 0:.4f}" + (f" ({(cost.bits_per_byte or 0) / (old.bits_per_byte or 1) - 1:+.1%})" * at)
        for cost, old in zip(costs, firsts, strict=True)
    ]
    share = made.parameters[at] / made.parameters[0]
    cells = [
        f"{made.tokens[at]:,}", f"{made.parameters[at] / 1e6:.1f}M" + f" ({share - 1:+.1%})" * at,
        f"{made.bytes[at] / 1e6:.0f}", f"{made.coverage:.2%}" if at else "", *bits,
        *(f"{cost.tokens_per_word:.3f}" for cost in costs),
    ]  # fmt: skip
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
