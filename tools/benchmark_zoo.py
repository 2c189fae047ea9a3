"""Prune every model of the zoo in tests/zoo, each in a process of its own, and print tables in Markdown.

Usage: .venv/bin/python tools/benchmark_zoo.py [--kinds hf] [--match clm/llama] [--jobs 2] [--json zoo.json]
                                               [--sparsity 0.3] [--family field]
                                               [--peer torch-pruning] [--peer torch-kirigami]

What is in the JSON file already is not run again: delete the file to start anew, or pass --retry to run again what was
not exact. Models of timm and torchvision need the extra `zoo`, and are skipped without it; other tools need the extra
`peers`. The package index has torchvision for CUDA only, and beside a torch for processors it breaks `import
transformers` everywhere but here, so keep it out of the environment then::

    .venv/bin/pip install --no-deps --target vision timm torchvision pillow -c constraints.txt
    PYTHONPATH=vision .venv/bin/python tools/benchmark_zoo.py

A model counts as exact if at least 1 % of its parameters are gone, its outputs have their shapes, and on fresh inputs
their values are those of the original with zeros in place of what was removed, to 1e-4 of the largest. graphprune
cuts only what is exact; in a model where nothing is, it cuts the rest, and proves what it claims of that. The proof
also has to refuse noise in the place of the weights. With --sparsity every model runs once more, with a budget of
parameters that the planner spends where it likes.

The family `field` has models that people bring: detectors, diffusion models, models that see and hear, mixtures of
experts, adapters, folders of other libraries. Each is captured, cut, written back, trained a step, saved, reloaded and
exported. The libraries are installed apart, because they would replace torch::

    .venv/bin/pip install --no-deps --target field -r tools/zoo_benchmark/field_requirements.txt
    PYTHONPATH=vision:field .venv/bin/python tools/benchmark_zoo.py --family field --json field.json
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # tests and tools are folders of the checkout

from tests import zoo  # first, for it helps torchvision
from tests.zoo import field as field_family

# isort: split
from graphprune.display.progress import progress
from graphprune.support.atomic_output import new_file
from tools.documents import fill
from tools.zoo_benchmark import field, ours
from tools.zoo_benchmark.field_table import field_table
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.outcomes import OK
from tools.zoo_benchmark.pool import Task, run_all
from tools.zoo_benchmark.record import Record
from tools.zoo_benchmark.table import BUDGET_COLUMNS, OUR_COLUMNS, PEER_COLUMNS, Column, comparison, failures, table
from tools.zoo_benchmark.work import PEERS

Records = dict[Task, Record]


def main() -> None:
    """Run what is not known yet, keep it, and print the tables."""
    options = _parser().parse_args()
    records = _read(options.json)
    goals, names = _goals(options), _names(options)
    every = [(tool, name) for tool in goals for name in names]
    tasks = [task for task in every if task not in records or (options.retry and not _passed(records[task]))]
    with progress("zoo", len(tasks)) as step:
        for record in run_all(tasks, options.jobs, options.limit, goals):
            records[record.tool, record.name] = record
            _write(options.json, records)
            step()
    tables = {tool: [records[tool, name] for name in names] for tool in goals}
    if options.family:
        _report_field(tables, options.write)
    else:
        _report(tables, options.write, whole=options.every == 1)


def _report(tables: Mapping[str, list[Record]], write: bool, whole: bool) -> None:
    """Print the tables of all tools, and write the summaries where they are documented, those of the whole zoo alone
    but for that by budget."""
    for tool in tables:
        _print(tool, tables[tool])
    peers = {tool: tables[tool] for tool in tables if tool != ours.BUDGET}
    if write and whole:
        fill("benchmark_zoo", "\n".join(_summary(tables.get(ours.NAME, []), OUR_COLUMNS)))
        fill("benchmark_zoo_tools", "\n".join(comparison(peers)))
    if write and ours.BUDGET in tables:
        fill("benchmark_zoo_budget", "\n".join(_summary(tables[ours.BUDGET], BUDGET_COLUMNS)))


def _report_field(tables: Mapping[str, list[Record]], write: bool) -> None:
    """Print the tables of the field family, and write the first where it is documented."""
    for tool in tables:
        print(f"\n### {tool}\n", *field_table(tables[tool]), sep="\n")
    if write:
        fill("benchmark_zoo_field", "\n".join(field_table(tables[ours.NAME])))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["hf", "timm", "tv"], choices=("hf", "timm", "tv"))
    parser.add_argument("--family", choices=("field",), help="models that people bring, instead of the zoo's")
    parser.add_argument("--match", default="", help="only models whose name holds this text")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th model of those, from the first")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds of processor time a model may take")
    parser.add_argument("--ratio", type=float, default=0.5, help="the share of every group to remove")
    parser.add_argument("--sparsity", type=float, help="a share of all parameters to remove in another run")
    parser.add_argument("--json", type=Path, help="the file that keeps the records")
    parser.add_argument("--write", action="store_true", help="write a summary into the document that has it")
    parser.add_argument("--retry", action="store_true", help="run again what was not exact")
    parser.add_argument("--peer", action="append", default=[], choices=tuple(PEERS), help="another tool to run too")
    parser.add_argument("--peers-only", action="store_true", help="leave graphprune out")
    return parser


def _goals(options: argparse.Namespace) -> dict[str, Goal]:
    """The tools to run, with what each has to remove; all of them are installed."""
    for name in options.peer:
        if find_spec(PEERS[name].PACKAGE) is None:
            sys.exit(f"{name} is not installed: pip install -e '.[peers]' -c constraints.txt")
    tools = [*([] if options.peers_only else [ours.NAME]), *options.peer]
    goals = dict.fromkeys(tools, Goal(options.ratio))
    return goals if options.sparsity is None else {**goals, ours.BUDGET: Goal(sparsity=options.sparsity)}


def _passed(record: Record) -> bool:
    """Is there nothing to run again?"""
    return all(outcome == OK for outcome in record.outcomes.values()) if record.outcomes else record.exact


def _names(options: argparse.Namespace) -> list[str]:
    """The models to run; those that need a package which is not installed are left out, with a word."""
    names = [name for name in _all_names(options) if options.match in name]
    absent = {name: _missing(name) for name in names}
    if packages := {package for needed in absent.values() for package in needed}:
        print(f"left out are the models that need {' and '.join(sorted(packages))}", file=sys.stderr)
    return [name for name in names if not absent[name]][:: options.every]


def _missing(name: str) -> list[str]:
    """Packages that a model needs and that are not installed."""
    if name.startswith(field.PREFIX):
        return field_family.missing(name.removeprefix(field.PREFIX))
    return zoo.missing(name)


def _all_names(options: argparse.Namespace) -> list[str]:
    """Every name of the family."""
    if options.family:
        return [f"{field.PREFIX}{name}" for name in field_family.NAMES]
    return [name for name in zoo.NAMES if name.split("/")[0] in options.kinds]


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


def _summary(own: list[Record], columns: Sequence[Column]) -> Iterator[str]:
    """Table of our results by family, and a list of the models that are not exact."""
    yield from (*table(own, columns), "", "Not exact:", "", *failures([r for r in own if not r.exact]))


if __name__ == "__main__":
    main()
