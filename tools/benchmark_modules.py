"""Prune small networks by one call, without training, and measure how often they are right.

Usage: .venv/bin/python tools/benchmark_modules.py [--networks cnn mixer] [--ways "auto, loss" fasp] [--seeds 0 1 2] \
           [--ratio 0.5] [--write]

Every network tells the angles of stripes in noisy images (tools/examples/small_cnn.py), and is trained anew for every
seed, within seconds. A way is what `graphprune.prune` gets: data and a loss, data alone, or nothing; or a pipeline of
scores and passes after the cut, such as ``fasp`` or ``fasp+refit,batch-norm-statistics``.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune as gp
from tools.documents import fill
from tools.examples.small_cnn import SIDE, SmallCNN, accuracy, loss, stripes, train_on

PATCHES = (SIDE // 3) ** 2
AFTER = "refit,batch-norm-statistics"
GRADIENTS = ("k-obs", "fisher", "taylor", "taylor-second")
WAYS = (
    "auto, loss", "auto, data", "auto, nothing", "magnitude", f"magnitude+{AFTER}", f"fasp+{AFTER}", f"flap+{AFTER}",
    f"osscar+{AFTER}", f"taylor+{AFTER}", f"fisher+{AFTER}", f"k-obs+{AFTER}",
)  # fmt: skip


class Mix(nn.Module):
    """A layer of an MLP-Mixer: over the patches, then over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(48), nn.LayerNorm(48)
        self.patches = nn.Sequential(nn.Linear(PATCHES, 48), nn.GELU(), nn.Linear(48, PATCHES))
        self.channels = nn.Sequential(nn.Linear(48, 128), nn.GELU(), nn.Linear(128, 48))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape (n, patches, channels)."""
        x = x + self.patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.channels(self.norm2(x))
        return mixed


class Patches(nn.Module):
    """Patches of an image, layers over them, and a linear head on their mean."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.patch, self.layers = nn.Conv2d(3, 48, 3, 3), layers
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From images to logits."""
        logits: Tensor = self.head(self.norm(self.layers(self.patch(x).flatten(2).transpose(1, 2))).mean(1))
        return logits


class Recurrent(nn.Module):
    """Convolutions along the rows of an image, an LSTM over its columns, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv1d(3 * SIDE, 64, 3, 1, 1, bias=False), nn.BatchNorm1d(64), nn.ReLU()
        self.convolutions = nn.Sequential(*first, nn.Conv1d(64, 64, 3, 1, 1), nn.ReLU())
        self.recurrent = nn.LSTM(64, 64, batch_first=True)
        self.hidden, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From images to logits."""
        columns = self.convolutions(x.flatten(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(torch.relu(self.hidden(self.recurrent(columns)[0].mean(1))))
        return logits


def transformer() -> nn.Module:
    """A small vision transformer."""
    layer = nn.TransformerEncoderLayer(48, 4, 96, 0.0, batch_first=True, norm_first=True)
    return Patches(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


#: Networks, and their epochs of training.
NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "cnn": (SmallCNN, 4),
    "mixer": (lambda: Patches(nn.Sequential(Mix(), Mix())), 25),
    "transformer": (transformer, 25),
    "recurrent": (Recurrent, 25),
}


def options_of(way: str, train: Sequence[Any], ratio: float) -> dict[str, Any]:
    """Options of `graphprune.prune` for a way."""
    common: dict[str, Any] = {"ratio": ratio, "inplace": False}
    kinds: dict[str, dict[str, Any]] = {
        "auto, loss": {"data": train, "loss": loss},
        "auto, data": {"data": train},
        "auto, nothing": {"args": (train[0][0],)},
    }
    if way in kinds:
        return common | kinds[way]
    score, _, after = way.partition("+")
    gather = "calibrate | gradients | " if score in GRADIENTS else "calibrate | "
    passes = "".join(f"{name} | " for name in after.split(",") if name)
    text = f"analyze | {gather}score{{by={score}}} | allocate | select | rewrite | {passes}verify"
    return common | {"pipeline": text, "data": train, "loss": loss}


def measured(network: str, ways: Sequence[str], seeds: Sequence[int], ratio: float) -> dict[str, list[float]]:
    """Accuracy of the dense network and of every way, for each seed."""
    table: dict[str, list[float]] = {}
    make, epochs = NETWORKS[network]
    for seed in seeds:
        torch.manual_seed(seed)
        train, test = stripes(2048, seed=2 * seed), stripes(2048, seed=2 * seed + 1)
        dense = train_on(make(), train, epochs)
        table.setdefault("dense", []).append(accuracy(dense, test))
        for way in ways:
            small = gp.prune(dense, **options_of(way, train, ratio)).module
            table.setdefault(way, []).append(accuracy(small, test))
            sys.stderr.write(f"{network}, seed {seed}, {way}: {table[way][-1]:.1%}\n")
    return table


def lines_of(tables: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Rows of a table in Markdown."""
    ways = next(iter(tables.values()))
    rows = ["| way | " + " | ".join(tables) + " |", "|---" * (len(tables) + 1) + "|"]
    for way in ways:
        cells = (" / ".join(f"{100 * value:.1f}" for value in table[way]) for table in tables.values())
        rows.append(f"| {way} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    tables = {name: measured(name, options.ways, options.seeds, options.ratio) for name in options.networks}
    lines = "\n".join(lines_of(tables))
    print(lines)
    if options.write:
        fill("benchmark_modules", lines)


if __name__ == "__main__":
    main()
