"""Tell how long pruning by FASP takes from the shape of a decoder, and compare that with runs.

Usage: .venv/bin/python tools/cost_model.py --tokenizer FOLDER --calibration TEXT [--samples 32 --length 512]

Operations and bytes are counted from the shape; how many of them this machine does in a second is measured on single
products, factorisations and copies. Three random models of rising size are pruned, and both times are printed; then
what the model says of larger ones, for one process and for several, each with a machine like this one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from graphprune.solvers.normal_equations import DAMPINGS, SKETCH_ROWS
from graphprune.statistics.collector import BATCH_TOKENS
from graphprune.statistics.moments import BLOCKS
from tools import make_random_model
from tools.documents import fill

SYMMETRIC = (1 + 1 / BLOCKS) / 2  # the part of a square that is computed
NAME = "cost_model"
COUNTED = ("calibrate", "refit")  # the passes that the model tells


@dataclass(frozen=True)
class Shape:
    """A decoder: widths, layers, heads of queries and of keys and values, and tokens that it knows."""

    hidden: int
    layers: int
    heads: int
    kv: int
    ff: int
    vocab: int

    @property
    def values(self) -> int:
        """The inputs of the map behind attention."""
        return self.hidden

    @property
    def block(self) -> int:
        """The parameters of one layer."""
        return self.hidden * (2 * self.hidden + 2 * self.hidden * self.kv // self.heads + 3 * self.ff)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.layers * self.block + 2 * self.vocab * self.hidden

    def options(self) -> list[str]:
        """As `make_random_model` wants them."""
        sizes = {
            "hidden": self.hidden, "layers": self.layers, "heads": self.heads, "kv-heads": self.kv,
            "intermediate": self.ff, "vocab": self.vocab,
        }  # fmt: skip
        return [word for name, size in sizes.items() for word in (f"--{name}", str(size))]


SMALL = {
    "20M": Shape(256, 8, 8, 8, 1024, 512),
    "60M": Shape(512, 16, 8, 8, 1408, 512),
    "200M": Shape(1024, 16, 16, 16, 2816, 512),
}
LARGE = {
    "7B": Shape(4096, 32, 32, 32, 11008, 32000),
    "70B": Shape(8192, 80, 64, 8, 28672, 128256),
    "405B": Shape(16384, 126, 128, 8, 53248, 128256),
}


@dataclass(frozen=True)
class Rates:
    """Throughput of this machine per second: operations in single and double precision, bytes of weights read."""

    single: float
    double: float
    read: float


@dataclass(frozen=True)
class Cost:
    """Operations in single and in double precision, and bytes of weights that are read."""

    single: float
    double: float
    read: float

    def seconds(self, rates: Rates, processes: int = 1) -> float:
        """Each process runs a part of the tokens; all of them read all weights and solve all equations."""
        return self.single / rates.single / processes + self.double / rates.double + self.read / rates.read


def costs(shape: Shape, tokens: int, length: int, sparsity: float) -> dict[str, Cost]:
    """Costs of the dense pass, and of the refit."""
    attention = 4 * length * shape.hidden  # scores and their products with values, for one token of one layer
    sweep = shape.layers * tokens * (2 * shape.block + attention)
    squares = shape.layers * tokens * 2 * SYMMETRIC * (shape.ff**2 + shape.values**2)
    left = 1 - sparsity * shape.parameters / (shape.layers * 4 * shape.hidden * shape.ff)  # of inner widths, about
    solve, scale = (
        shape.layers * sum(count(n, int(left * n), shape.hidden) for n in (shape.ff, shape.values))
        for count in (_solving, _energies)
    )
    read = 2.0 * shape.layers * shape.block
    return {"calibrate": Cost(sweep, 0, read), "refit": Cost(sweep + squares + scale, solve, 2 * read)}


def _solving(n: int, k: int, m: int) -> float:
    """For a map from n inputs, of which k stay, to m outputs: normal equations twice, every damping, and the fit."""
    equations = 2 * 2 * m * (n - k) * n
    tried = len(DAMPINGS) * (k**3 / 3 + 4 * min(m, SKETCH_ROWS) * k * k)
    return equations + tried + k**3 / 3 + 2 * m * k * k


def _energies(n: int, k: int, m: int) -> float:
    """Of the outputs before and after, in single precision (where all is small, in double)."""
    return 4 * m * k * k


def measured_rates() -> Rates:
    """From products as large as a batch makes them, factorisations, and conversions of what a file holds."""
    x, w = torch.randn(BATCH_TOKENS, 1024), torch.randn(1024, 2816)
    square = torch.randn(2048, 2048, dtype=torch.float64)
    square = square @ square.T + 2048 * torch.eye(2048, dtype=torch.float64)
    stored = torch.randn(1 << 24).bfloat16()
    single = 2 * BATCH_TOKENS * 1024 * 2816 / timed(lambda: x @ w)
    double = 2048**3 / 3 / timed(lambda: torch.linalg.cholesky(square))
    return Rates(single, double, stored.nbytes / timed(lambda: stored.float()))


def timed(work: Callable[[], object], repeats: int = 5) -> float:
    """The median of the seconds it takes."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return sorted(taken[1:])[repeats // 2]


def main() -> None:
    """Print both tables; with --write, put them into their document, too."""
    options = arguments()
    rows, rates = compared(options)
    table = "\n".join([*rows, "", *larger(rates, options.sparsity)])
    print(table)
    if options.write:
        fill(NAME, table)


def compared(options: argparse.Namespace) -> tuple[list[str], Rates]:
    """The rows of predicted and measured times of small shapes, and the rates of this machine."""
    tokens = options.samples * options.length
    rows = [
        "| model | parameters | calibrate: predicted, measured | refit: predicted, measured | measured / predicted |",
        "|---|---|---|---|---|",
    ]
    for name, shape in SMALL.items():
        before = measured_rates()
        found = pruned(shape, options)
        rates = mean(before, measured_rates())
        predicted = {
            p: cost.seconds(rates) for p, cost in costs(shape, tokens, options.length, options.sparsity).items()
        }
        cells = [f"{predicted[p]:.1f} s, {found[p]:.1f} s" for p in COUNTED]
        share = sum(found[p] for p in COUNTED) / sum(predicted.values())
        rows.append(f"| {name} | {shape.parameters / 1e6:,.0f} M | {' | '.join(cells)} | {share:.2f} |")
    return rows, rates


def larger(rates: Rates, sparsity: float) -> list[str]:
    """The hours that large shapes take, for 128 samples of 2048 tokens."""
    rows = ["| model | parameters | operations | 1 process | 8 processes | 64 processes |", "|---|---|---|---|---|---|"]
    for name, shape in LARGE.items():
        parts = costs(shape, 128 * 2048, 2048, sparsity).values()
        hours = [f"{sum(c.seconds(rates, n) for c in parts) / 3600:,.1f} h" for n in (1, 8, 64)]
        done = sum(cost.single + cost.double for cost in parts)
        rows.append(f"| {name} | {shape.parameters / 1e9:,.0f} G | {done:.1e} | {' | '.join(hours)} |")
    return rows


def mean(a: Rates, b: Rates) -> Rates:
    """Between what was measured before and after."""
    return Rates((a.single + b.single) / 2, (a.double + b.double) / 2, (a.read + b.read) / 2)


def pruned(shape: Shape, options: argparse.Namespace) -> dict[str, float]:
    """The seconds of each pass for a random model of that shape."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        model, output = Path(scratch) / "model", Path(scratch) / "out"
        make_random_model.main(["--tokenizer", str(options.tokenizer), "--output", str(model), *shape.options()])
        words = [
            sys.executable, "-m", "graphprune", "prune", str(model), "--recipe", "fasp", "--sparsity",
            str(options.sparsity), "--calibration", options.calibration, "--samples", str(options.samples), "--length",
            str(options.length), "--output", str(output), "--json",
        ]  # fmt: skip
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    seconds: dict[str, float] = json.loads(done.stdout)["seconds"]
    return seconds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder whose tokenizer the models get")
    parser.add_argument("--calibration", required=True, metavar="TEXT")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--scratch", type=Path, help="where the models lie meanwhile")
    parser.add_argument("--write", action="store_true", help="write the tables into the document that has it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
