"""Count the lines that a user writes for five tasks, with graphprune and with Torch-Pruning, and run them.

Usage: .venv/bin/python tools/benchmark_lines.py [--tasks one_shot iterative] [--torch-pruning FOLDER] [--write]

The files are tools/peer_examples/TASK_TOOL.py, each with a function `run(model, loader, loss)` for the small CNN of the
examples. Counted are the lines of its body, without the docstring, blank lines and comments, as the formatter of this
project lays them out. Torch-Pruning is optional: pip install --target FOLDER --no-deps torch-pruning==1.6.1; without
it, its files are counted and not run.
"""

import argparse
import ast
import copy
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from tools.documents import fill
from tools.examples.small_cnn import accuracy, loss, trained

NAME, FOLDER = "benchmark_lines", Path(__file__).parent / "peer_examples"
TASKS = {
    "one_shot": "one shot",
    "own_loss": "Taylor with a loss of one's own",
    "iterative": "in rounds of a training",
    "regularized": "regularized, then cut",
    "layer_ratios": "shares of layers",
}
TOOLS = ("graphprune", "torch_pruning")


@dataclass(frozen=True)
class Example:
    """Lines of an example, and the accuracy and share of parameters that are left after its run, if it was run."""

    lines: int
    accuracy: float | None = None
    share: float | None = None


def main() -> None:
    """Print the table; with --write, put it into its document, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--torch-pruning", default="", metavar="FOLDER", help="where the package is installed")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    options = parser.parse_args()
    sys.path[:0] = [options.torch_pruning] if options.torch_pruning else []
    table = "\n".join(rows(options.tasks))
    print(table)
    if options.write:
        fill(NAME, table)


def rows(tasks: list[str]) -> Iterator[str]:
    """The lines of the table."""
    model, train, test = trained()
    yield "| task | " + " | ".join(f"{tool}: lines | accuracy | parameters left" for tool in TOOLS) + " |"
    yield "|---" * (1 + 3 * len(TOOLS)) + "|"
    for task in tasks:
        yield f"| {TASKS[task]} | {' | '.join(_cells(measured(task, tool, model, train, test)) for tool in TOOLS)} |"


def measured(task: str, tool: str, model: Any, train: Any, test: Any) -> Example:
    """Count the lines of an example, and run it on a copy of the model if its package is installed."""
    name = f"{task}_{tool}"
    count = lines_of(FOLDER / f"{name}.py")
    try:
        example = import_module(f"tools.peer_examples.{name}")
    except ImportError:
        return Example(count)
    small = example.run(copy.deepcopy(model), train, loss)
    parameters = [sum(weight.numel() for weight in one.parameters()) for one in (small, model)]
    return Example(count, accuracy(small.eval(), test), parameters[0] / parameters[1])


def lines_of(file: Path) -> int:
    """Number of lines with code in the body of `run`, without its docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    body = function.body[1:] if ast.get_docstring(function) else function.body
    first, last = body[0].lineno, body[-1].end_lineno or 0
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    with file.open("rb") as stream:
        tokens = [token for token in tokenize.tokenize(stream.readline) if token.type not in skipped]
    return len({token.start[0] for token in tokens if first <= token.start[0] <= last})


def _cells(example: Example) -> str:
    numbers = ("-" if value is None else f"{value:.1%}" for value in (example.accuracy, example.share))
    return " | ".join((str(example.lines), *numbers))


if __name__ == "__main__":
    main()
