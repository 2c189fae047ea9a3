"""Compare graphprune with Torch-Pruning on three networks for small images, with equal budgets.

Usage: .venv/bin/python tools/benchmark_peers.py --weights resnet20.safetensors --train cifar10jpeg.train10k.bin \
           --test cifar10jpeg.test.bin --work FOLDER [--ways "one shot"] [--networks resnet20] [--shares 0.5 0.7 0.9] \
           [--methods graphprune "Taylor, all layers"] [--seeds 0 1 2] [--epochs 5] [--images 10000 10000] [--write]

Every method removes the same share of multiply-accumulates: at once without training, at once before some epochs of
training, or in rounds after the first of as many epochs, by the same cubic schedule. It sees the same 512 images before
a cut, and the same batches in training. What needs no training runs first. Results are lines of FOLDER/peers.jsonl, and
what is known is not run again. MobileNetV2 and the vision transformer are trained first, for `--dense-epochs`; their
weights lie in FOLDER, too.

Torch-Pruning is optional: pip install --target OTHER --no-deps torch-pruning==1.6.1, then --torch-pruning OTHER.
"""

import argparse
import copy
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from tools.documents import fill
from tools.peer_benchmark import networks, ours
from tools.peer_benchmark import torch_pruning_methods as theirs
from tools.peer_benchmark.record import CUT, DENSE, ITERATIVE, WAYS, Record, Run, append, read
from tools.peer_benchmark.table import lines_of
from tools.peer_benchmark.training import Batch, Training, adamw
from tools.peer_benchmark.vision_transformer import SmallVisionTransformer

NAME, LINES, CALLS = "benchmark_peers", "peers.jsonl", 8
NETWORKS = ("resnet20", "mobilenetv2", "vit")
SEEDED = ("Taylor", "graphprune")  # methods that draw images for the cut
HEALED = ours.NAMES[1]
NEAR = 0.05  # of the share that a method must reach for its accuracy to count


def main() -> None:
    """Run what is not known yet; print the table, or write it into its document."""
    options = arguments()
    logging.disable(logging.WARNING)
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / LINES
    harness = Harness.of(options)
    known = {record.run for record in read(file)}
    for run in runs(options):
        if run not in known:
            record = harness.record(run)
            append(file, record)
            sys.stderr.write(f"{run}: {record.fault or f'{record.accuracy:.2%}, {record.removed:.1%} removed'}\n")
    table = "\n".join(lines_of(list(read(file))))
    print(table)
    if options.write:
        fill(NAME, table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of ResNet-20")
    parser.add_argument("--train", type=Path, required=True, help="file of records of a class and a JPEG")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="the folder that keeps weights and figures")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.7, 0.9], help="of the MACs to remove")
    parser.add_argument("--methods", nargs="+", default=[*ours.NAMES, *theirs.NAMES], metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of the iterative way, each after an epoch")
    parser.add_argument("--images", nargs=2, type=int, default=[10000, 10000], help="so many to train, to test on")
    parser.add_argument("--dense-epochs", type=int, default=30)
    parser.add_argument("--width", type=float, default=0.5, help="of MobileNetV2")
    parser.add_argument("--torch-pruning", default="", metavar="FOLDER", help="where the package is installed")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    options = parser.parse_args()
    sys.path[:0] = [options.torch_pruning] if options.torch_pruning else []
    if not theirs.available():
        sys.stderr.write(f"without Torch-Pruning, which is not installed: {(__doc__ or '').splitlines()[-1]}\n")
        options.methods = [name for name in options.methods if name not in theirs.NAMES]
    return options


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """Runs in their order: dense ones, then the way without training, then others."""
    images = (options.images[0], options.images[1])
    for network in options.networks:
        yield Run(network, DENSE, DENSE, 0.0, 0, 0, images)
    for way in (way for way in WAYS if way in options.ways):
        for seed in options.seeds:
            for network in options.networks:
                for share in options.shares:
                    for method in options.methods:
                        run = Run(network, way, method, share, seed, 0 if way == CUT else options.epochs, images)
                        if differs(run, seed == options.seeds[0]):
                            yield run


def differs(run: Run, first: bool) -> bool:
    """Whether a run can differ from others: only some methods draw images, and only some ways have all methods."""
    if run.way == CUT:
        same = run.method == HEALED or run.method.startswith("GrowingReg")  # differ in training only
        return not same and (first or run.method.startswith(SEEDED))
    return run.way != ITERATIVE or run.method != HEALED


@dataclass(frozen=True)
class Harness:
    """Functions that return the dense networks, by name, and images."""

    dense: Mapping[str, Callable[[], nn.Module]]
    data: networks.Images
    rounds: int

    @staticmethod
    def of(options: argparse.Namespace) -> "Harness":
        data = networks.Images.read(options.train, options.test, (options.images[0], options.images[1]))
        ending = f"{options.dense_epochs}-{options.images[0]}.safetensors"

        mobilenet, vit = options.work / f"mobilenetv2-{options.width}-{ending}", options.work / f"vit-{ending}"
        training = Training(data.train, options.dense_epochs, rate=0.1)
        slow = replace(training, rate=1e-3)
        made = {
            "resnet20": cache(lambda: networks.resnet20(options.weights)),
            "mobilenetv2": cache(
                lambda: networks.trained(mobilenet, lambda: networks.MobileNetV2(options.width), training)
            ),
            "vit": cache(lambda: networks.trained(vit, SmallVisionTransformer, slow, adamw)),
        }
        return Harness(made, data, min(options.rounds, options.epochs))

    def record(self, run: Run) -> Record:
        """Run, and measure."""
        dense, start = self.dense[run.network](), time.process_time()
        try:
            small, untrained = self._pruned(run, dense)
        except Exception as fault:  # also of the other package, whose faults are results
            return Record(run, fault=f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}")
        taken = time.process_time() - start
        count = sum(weight.numel() for weight in small.parameters())
        removed = 1 - networks.macs(small) / networks.macs(dense)
        if removed < run.share - NEAR:
            return Record(run, removed, count, fault=f"{removed:.0%} removed at most")
        return Record(run, removed, count, networks.accuracy(small, self.data.test), untrained, taken)

    def _pruned(self, run: Run, dense: nn.Module) -> tuple[nn.Module, float | None]:
        """The pruned network, and its accuracy before training if it was cut at once."""
        if run.way == DENSE:
            return dense, None
        own, calls, model = run.method in ours.NAMES, self._calls(run.seed), copy.deepcopy(dense)
        training = Training(self.data.train, run.epochs, run.seed)
        peer = theirs.Cutter(run.method, calls, networks.macs(dense))
        if run.way == ITERATIVE:
            rounds = self.rounds
            if own:
                return ours.in_training(model, run.share, calls, rounds, training), None
            return peer.in_training(model, run.share, rounds, training), None
        if own:
            model = ours.cut(model, run.share, calls)
        else:
            peer.cut(model, run.share)
        if run.way == CUT:
            return model, None
        before = networks.accuracy(model, self.data.test)
        return ours.train(run.method, model, dense, training) if own else training.run(model), before

    def _calls(self, seed: int) -> list[Batch]:
        """Batches of 64 images for scores and refits."""
        order = torch.randperm(len(self.data.train[1]), generator=torch.Generator().manual_seed(seed))
        return [(self.data.train[0][at], self.data.train[1][at]) for at in torch.split(order[: CALLS * 64], 64)]


if __name__ == "__main__":
    main()
