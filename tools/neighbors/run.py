"""Install each neighbor into a folder of its own, run its check, and write the table of the page on serving.

Usage: tools/clients MODEL [--only NAME ...] [--into FOLDER] [--write]

MODEL is the folder of a decoder with its tokenizer. A neighbor that is in FOLDER already is not installed again:
llama-cpp-python, which pip builds from source in half an hour, may be a link there to the folder that has it. Torch and
transformers are those of this environment, unless a neighbor needs others. What npm installs needs Node.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import graphprune as gp
from graphprune.huggingface import model_folder
from tools.documents import ROOT, fill
from tools.neighbors.neighbor import EXPECTED, ONNX, PER_LAYER, QUESTIONS, STOCK, WEB, Neighbor, load, logits
from tools.neighbors.single_check import NEIGHBORS


@dataclass(frozen=True)
class Row:
    """Outcome of a check: the version that ran and the difference, or the reason why none did."""

    name: str
    version: str = ""
    difference: float | None = None
    fault: str = ""

    @property
    def holds(self) -> bool:
        """Whether the difference is within the bound."""
        return self.difference is not None and self.difference <= NEIGHBORS[self.name].bound


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the status is that of the worst check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", nargs="*", choices=NEIGHBORS, default=list(NEIGHBORS))
    parser.add_argument("--into", type=Path, help="where packages are installed, and stay")
    parser.add_argument("--write", action="store_true", help="put the table into its page")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as scratch:
        place = Path(scratch) / "models"
        prepare(options.model, place)
        rows = [examine(name, place, (options.into or Path(scratch)) / name) for name in options.only]
    text = table(rows)
    print(text)
    if options.write:
        fill("clients", text)
    return int(not all(row.holds for row in rows))


def prepare(model: Path, place: Path) -> None:
    """Prune a decoder, export it, compute its logits, and make questions of its vocabulary."""
    place.mkdir()
    for kind in (PER_LAYER, STOCK):
        gp.prune(model, recipe="magnitude", sparsity=0.1, align=1, destination=kind, output=place / kind)
    gp.export(place / PER_LAYER, target="onnx", output=place / ONNX)
    gp.export(place / STOCK, target="web", output=place / WEB)
    torch.save({kind: logits(load(place, kind)) for kind in (PER_LAYER, STOCK)}, place / EXPECTED)
    tokenizer = model_folder.tokenizer(model)
    words = [tokenizer.decode([i]).strip() for i in range(len(tokenizer) // 2, len(tokenizer))]
    words = [word for word in words if word.isalnum()][:60]
    items = [
        {
            "context": " ".join(words[i : i + 4]),
            "choices": [words[-i], " ".join(words[-3 - i : -1 - i])],
            "label": i % 2,
        }
        for i in range(1, 13)
    ]
    (place / QUESTIONS).write_text("\n".join(map(json.dumps, items)))


def examine(name: str, place: Path, packages: Path) -> Row:
    """Install a neighbor and run its check in a process that has it."""
    if not packages.is_dir():
        fault = _install(NEIGHBORS[name], packages)
        if fault:
            return Row(name, fault=f"cannot be installed: {fault}")
    done = _run(sys.executable, "-m", "tools.neighbors.single_check", name, place, packages=packages)
    if done.returncode:
        return Row(name, fault=_last(done.stderr))
    outcome = json.loads(done.stdout.splitlines()[-1])
    return Row(name, outcome["version"], outcome["difference"])


def _install(neighbor: Neighbor, packages: Path) -> str:
    """Install a neighbor into a folder; returns the reason where that fails, and then leaves no folder."""
    if neighbor.npm and not (shutil.which("npm") and shutil.which("node")):
        return "node and npm are not on PATH"
    words: tuple[object, ...] = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages)
    if neighbor.npm:
        words = "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", packages
    done = _run(*words, *neighbor.requirements)
    if done.returncode:
        shutil.rmtree(packages, ignore_errors=True)
        return _last(done.stderr)
    return ""


def _run(*words: object, packages: Path | None = None) -> "subprocess.CompletedProcess[str]":
    known = os.pathsep.join(map(str, filter(None, (packages, ROOT))))
    environment = {**os.environ, "PYTHONPATH": known, "HF_HUB_OFFLINE": "1", "NODE_PATH": f"{packages}/node_modules"}
    return subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, check=False)


def _last(text: str) -> str:
    """The last line of a traceback."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def table(rows: list[Row]) -> str:
    """The table as Markdown, with the date of the run."""
    lines = [
        "| program | version | what it does with a pruned model | largest difference | checked |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        neighbor: Neighbor = NEIGHBORS[row.name]
        shown = row.fault or ("none" if not row.difference else f"{row.difference:.1e}")
        shown += "" if row.holds or row.fault else f", more than {neighbor.bound:.0e}"
        lines.append(f"| {row.name} | {row.version} | {neighbor.does} | {shown} | {datetime.now(UTC):%Y-%m-%d} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
