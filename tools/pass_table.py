"""Write the table of passes into passes/README.md and the docstring of passes/__init__.py.

Usage: .venv/bin/python tools/pass_table.py
"""

import re
import sys
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune.passes
from graphprune.pipeline import PASSES, Pass

ROOT = Path(__file__).parent.parent
#: The folders of passes/ in the order of a pipeline.
STAGES = (
    "analysis", "calibration", "scores", "sensitivity", "allocation", "selection", "depth", "rotation", "rewriting",
    "low_rank", "experts", "reconstructions", "verification",
)  # fmt: skip
HEAD = ("stage", "pass", "reads", "makes")
WIDEST = 40  # letters of a cell in the docstring
README, MODULE = ROOT / "passes/README.md", ROOT / "passes/__init__.py"


def rows() -> Iterator[tuple[str, str, str, str]]:
    """The stage of every pass, its name, and the facts that it reads and makes with default options."""
    for stage in STAGES:
        for name in sorted(name for name in PASSES if stage_of(PASSES[name]) == stage):
            step = PASSES[name]()
            yield stage, name, names(step.needs), names(step.makes)


def stage_of(step: type[Pass]) -> str:
    """The folder of a pass."""
    return step.__module__.removeprefix(f"{graphprune.passes.__name__}.").split(".")[0]


def names(facts: tuple[type, ...]) -> str:
    """The names of facts."""
    return ", ".join(fact.__name__ for fact in facts)


def markdown() -> str:
    """The table in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD)]
    lines += [(stage, f"`{name}`", reads, makes) for stage, name, reads, makes in rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain() -> str:
    """The table as text in columns."""
    lines = [line for row in (HEAD, *rows()) for line in _wrapped(row)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("    " + "  ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines)


def _wrapped(row: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """A row whose cells take several lines where they are long."""
    return zip_longest(*(textwrap.wrap(cell, WIDEST) for cell in row), fillvalue="")


def in_readme(text: str) -> str:
    """The page with the table of today."""
    return re.sub(
        r"<!-- passes -->.*<!-- /passes -->", f"<!-- passes -->\n{markdown()}\n<!-- /passes -->", text, flags=re.S
    )


def in_module(text: str) -> str:
    """The module with the table of today at the end of its docstring."""
    return re.sub(r"    stage.*?\n\"\"\"", f'{plain()}\n"""', text, count=1, flags=re.S)


def main() -> None:
    """Write both tables."""
    for path, written in ((README, in_readme), (MODULE, in_module)):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
