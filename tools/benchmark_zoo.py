"""Prune every model of the zoo in tests/zoo, each in a process of its own, and print tables in Markdown.

Usage: .venv/bin/python tools/benchmark_zoo.py [--kinds hf] [--match clm/llama] [--jobs 2] [--json zoo.json]
                                               [--peer torch-pruning] [--peer torch-kirigami]

What is in the JSON file already is not run again: delete the file to start anew, or pass --retry to run again what was
not exact. Models of timm and torchvision need the extra `zoo`, and are skipped without it; other tools need the extra
`peers`. The package index has torchvision for CUDA only, and beside a torch for processors it breaks `import
transformers` everywhere but here, so keep it out of the environment then::

    .venv/bin/pip install --no-deps --target vision timm torchvision pillow -c constraints.txt
    PYTHONPATH=vision .venv/bin/python tools/benchmark_zoo.py

A model counts as exact if at least 1 % of its parameters are gone, its outputs have their shapes, and on fresh inputs
their values are those of the original with zeros in place of what was removed, to 1e-4 of the largest. graphprune
cuts only what is exact; in a model where nothing is, it cuts the rest, and proves what it claims of that.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # tests and tools are folders of the checkout

from tests import zoo  # first, for it helps torchvision

# isort: split
from graphprune.display.progress import progress
from graphprune.support.atomic_output import new_file
from tools.documents import fill
from tools.zoo_benchmark import ours
from tools.zoo_benchmark.pool import Task, run_all
from tools.zoo_benchmark.record import Record
from tools.zoo_benchmark.table import OUR_COLUMNS, PEER_COLUMNS, comparison, failures, table
from tools.zoo_benchmark.work import PEERS

Records = dict[Task, Record]


def main() -> None:
    """Run what is not known yet, keep it, and print the tables."""
    options = _parser().parse_args()
    records = _read(options.json)
    names = _names(options)
    wanted = [(tool, name) for tool in _tools(options) for name in names]
    tasks = [task for task in wanted if task not in records or (options.retry and not records[task].exact)]
    with progress("zoo", len(tasks)) as step:
        for record in run_all(tasks, options.jobs, options.limit, options.ratio):
            records[record.tool, record.name] = record
            _write(options.json, records)
            step()
    tables = {tool: [records[tool, name] for name in names] for tool in _tools(options)}
    for tool in tables:
        _print(tool, tables[tool])
    if options.write:
        fill("benchmark_zoo", "\n".join(_summary(tables.get(ours.NAME, []))))
        fill("benchmark_zoo_tools", "\n".join(comparison(tables)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["hf", "timm", "tv"], choices=("hf", "timm", "tv"))
    parser.add_argument("--match", default="", help="only models whose name holds this text")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th model of those, from the first")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds of processor time a model may take")
    parser.add_argument("--ratio", type=float, default=0.5, help="the share of every group that is kept")
    parser.add_argument("--json", type=Path, help="the file that keeps the records")
    parser.add_argument("--write", action="store_true", help="write a summary into the document that has it")
    parser.add_argument("--retry", action="store_true", help="run again what was not exact")
    parser.add_argument("--peer", action="append", default=[], choices=tuple(PEERS), help="another tool to run too")
    parser.add_argument("--peers-only", action="store_true", help="leave graphprune out")
    return parser


def _tools(options: argparse.Namespace) -> list[str]:
    """The tools to run; all of them are installed."""
    for name in options.peer:
        if find_spec(PEERS[name].PACKAGE) is None:
            sys.exit(f"{name} is not installed: pip install -e '.[peers]' -c constraints.txt")
    return [*([] if options.peers_only else [ours.NAME]), *options.peer]


def _names(options: argparse.Namespace) -> list[str]:
    """The models to run; those that need a package which is not here are left out, with a word."""
    names = [name for name in zoo.NAMES if name.split("/")[0] in options.kinds and options.match in name]
    absent = {package for name in names for package in zoo.missing(name)}
    if absent:
        print(f"left out are the models that need {' and '.join(sorted(absent))}", file=sys.stderr)
    return [name for name in names if not zoo.missing(name)][:: options.every]


def _read(path: Path | None) -> Records:
    """Records of an earlier run."""
    rows = json.loads(path.read_text()) if path and path.exists() else []
    return {(row["tool"], row["name"]): Record(**row) for row in rows}


def _write(path: Path | None, records: Mapping[Task, Record]) -> None:
    """Keep everything; the file is complete at any moment."""
    if path is None:
        return
    with new_file(path, force=True) as beside:
        beside.write_text(json.dumps([asdict(record) for record in records.values()], indent=1))


def _print(tool: str, records: list[Record]) -> None:
    """The table of one tool, and what did not go well."""
    print(f"\n### {tool}\n")
    if tool in PEERS:
        print("Each model was pruned in several documented ways; the first exact result counts, else the nearest.\n")
    for line in (*table(records, PEER_COLUMNS if tool in PEERS else OUR_COLUMNS), "", *failures(records)):
        print(line)


def _summary(own: list[Record]) -> Iterator[str]:
    """Table of our results by family, and a list of the models that are not exact."""
    yield from (*table(own, OUR_COLUMNS), "", "Not exact:", "", *failures([r for r in own if not r.exact]))


if __name__ == "__main__":
    main()
