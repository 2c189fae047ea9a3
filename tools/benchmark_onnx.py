"""Export small models of many kinds to ONNX, halve every group of each file, and compare with the masked file.

Usage: .venv/bin/python tools/benchmark_onnx.py --folder FOLDER [--only GLOB...] [--json FILE] [--simplifier FOLDER]

Files are made once, by both exporters of torch, at opsets 11 to 24, with and without dynamic sizes; decoders with their
cache. A file counts as exact if it loads, half of every group is cut, and the new file computes in ONNX Runtime what
the original does with zeros at the removed indices. `--simplifier` is a folder in which onnxsim is installed, whose
structured pruning by half runs on the same files: its result counts if ONNX Runtime loads it, and runs it on the same
inputs.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune as gp
from graphprune.errors import GraphpruneError, reason_of
from graphprune.exporters.export_folders.rewritten_file import write_again
from graphprune.exporters.onnx_tools.onnx_files import MODEL
from graphprune.workflows.masked_file import compare_with_masked
from tools.onnx_benchmark.models import Export, exports
from tools.onnx_benchmark.simplifier import pruned_by_simplifier


def main() -> None:
    """Measure all files, and print the table."""
    options = arguments()
    logging.disable(logging.WARNING)
    options.folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(options.json.read_text(encoding="utf-8")) if options.json and options.json.is_file() else {}
    for export in exports():
        if export.label in known or not any(fnmatch(export.label, glob) for glob in options.only):
            continue
        known[export.label] = row = measured(export, options)
        print(export.label, row, flush=True)
        if options.json:
            options.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(known)))


def measured(export: Export, options: argparse.Namespace) -> dict[str, Any]:
    """Row of a file: its parameters before and after, its error, or the reason of a failure."""
    path = options.folder / f"{export.label}.onnx"
    if not path.exists():
        path = export.write(options.folder)
    row: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        program = gp.load(path)
        plan = gp.plan(program, ratio=0.5, recipe="magnitude")
        row |= {"groups": len(gp.analyze(program).groups), "cut": len(plan.groups), "before": program.count()}
        small = gp.apply(program, plan)
        row["after"] = small.count()
        row["proof"] = gp.verify(program, small, plan).max_error
        with tempfile.TemporaryDirectory() as folder:
            write_again(small, Path(folder) / "written")
            row["masked"] = compare_with_masked(small, Path(folder) / "written" / MODEL)
    except GraphpruneError as fault:
        row["failure"] = reason_of(fault)
    except Exception as fault:  # a fault of this project, to be counted
        row["failure"] = f"{type(fault).__name__}: {fault}"
    row["seconds"] = round(time.perf_counter() - start, 1)
    if options.simplifier:
        row["simplifier"] = pruned_by_simplifier(path, options.simplifier)
    return row


def table(rows: dict[str, Any]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = ["| file | groups | parameters | exact | onnxsim |", "|---|---|---|---|---|"]
    for label, row in rows.items():
        removed = f"{row['before']:,} -> {row['after']:,}" if "after" in row else ""
        exact = f"{row['masked']:.0e}" if "masked" in row else f"no: {row.get('failure', '')}"
        lines.append(f"| {label} | {row.get('groups', '')} | {removed} | {exact} | {row.get('simplifier', '')} |")
    count = sum("masked" in row for row in rows.values())
    return [*lines, f"{count} of {len(rows)} files are exact"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the files are made, or lie already")
    parser.add_argument("--only", nargs="+", default=["*"], help="globs of the names of files")
    parser.add_argument("--json", type=Path, help="a file for all that was measured; what it has is not repeated")
    parser.add_argument("--simplifier", type=Path, help="a folder in which onnxsim is installed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
