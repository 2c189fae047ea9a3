"""Measure what a round of `gp.Pruner` costs, compared with a step of the training that it interrupts.

Usage: .venv/bin/python tools/benchmark_rounds.py [--size 64] [--rounds 5] [--recipe magnitude] [--write]

The network is ResNet-50 of transformers without weights of its own, with random images. Times are those of the
processor, which other work on the machine does not lengthen, in the process of the training; the first round is apart,
because operators are loaded in it. The configuration follows in the last round.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, ResNetForImageClassification

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune as gp
from tools.documents import fill

NAME = "benchmark_rounds"


class Images(torch.nn.Module):
    """A network that returns logits."""

    def __init__(self) -> None:
        super().__init__()
        configured: Any = ResNetConfig
        self.body: Any = ResNetForImageClassification(configured(num_labels=1000))

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(x).logits


def main() -> None:
    """Print the table; with --write, put it into its document, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="magnitude")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    options = parser.parse_args()
    table = "\n".join(rows(options))
    print(table)
    if options.write:
        fill(NAME, table)


def rows(options: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    torch.manual_seed(0)
    network: Any = Images()
    images, classes = torch.randn(options.batch, 3, options.size, options.size), torch.arange(options.batch)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    start = time.process_time()
    pruner = gp.Pruner(
        network, (images[:1],), recipe=options.recipe, sparsity=0.7, rounds=options.rounds + 1, schedule="linear",
        optimizer=optimizer, data=[(images, classes)], loss=lambda output, batch: cross_entropy(output, batch[1]),
    )  # fmt: skip
    lines = [
        f"| ResNet-50, {options.size} x {options.size}, {options.recipe} | parameters | seconds | of them plan and "
        "proof | write-back |",
        "|---|---|---|---|---|",
        f"| capture and analysis, once | {pruner.program.count():,} | {time.process_time() - start:.2f} | | |",
    ]
    for _ in range(options.rounds):
        start = time.process_time()
        loss: Any = cross_entropy(network(images), classes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step, start = time.process_time() - start, time.process_time()
        done = pruner.step()
        took, wall = time.process_time() - start, sum(done.seconds.values())
        first, last = (took * done.seconds[part] / wall for part in ("plan and proof", "write back"))
        lines.append(f"| round {done.number} | {done.after:,} | {took:.2f} | {first:.2f} | {last:.2f} |")
    lines.append(f"| a step of the training, batch of {options.batch} | {done.before:,} | {step:.2f} | | |")
    return lines


if __name__ == "__main__":
    main()
