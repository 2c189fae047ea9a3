"""Times of several exported folders, taken in turns."""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from graphprune.exporters import scoring
from graphprune.exporters.generation import Decoder
from graphprune.exporters.onnx_files import MODEL
from graphprune.exporters.onnx_runtime import Runner, open_model
from graphprune.exporters.subjects import PAST
from graphprune.pruning import peak_memory
from tools.export_benchmark.products import products

_SIZES = {"batch_size": 1, "sequence_length": 128}  # of models without a cache


@dataclass
class Measured:
    """What was measured of a folder; seconds of each run by what it did, and per token where a decoder wrote."""

    folder: str
    target: str
    options: dict[str, object]
    parameters: int
    bytes: int
    products: int
    worst: float
    memory: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    perplexity: dict[str, float] = field(default_factory=dict)
    realised: dict[str, float] = field(default_factory=dict)


def measure(options: argparse.Namespace) -> list[Measured]:
    """Measure all folders; each is compared with the first that was exported with the same options."""
    found = [_facts(folder) for folder in options.folders]
    for one, folder in zip(found, options.folders, strict=True):
        one.memory = _memory(folder, options)  # first: a process begins with the peak of its parent
    runners = [open_model(folder / MODEL, options.provider, threads=options.threads) for folder in options.folders]
    for turn in range(options.repeats + 1):
        for one, runner in zip(found, runners, strict=True):
            for what, seconds in _turn(runner, options).items():
                one.seconds.setdefault(what, []).extend(seconds * (turn > 0))  # the first warms up
    for one, folder in zip(found, options.folders, strict=True):
        one.perplexity = {
            text: scoring.evaluate(folder, text, windows=options.windows, provider=options.provider).perplexity
            for text in options.text
        }
        alike = [other for other in found if (other.target, other.options) == (one.target, one.options)]
        one.realised = realised(alike[0], one)
    return found


def _facts(folder: Path) -> Measured:
    report = json.loads((folder / "export_report.json").read_text(encoding="utf-8"))
    worst = max(case["worst"] for case in report["parity"].values())
    count = products(folder / MODEL)
    return Measured(
        folder.name, report["target"], report["options"], report["parameters"], report["bytes"], count, worst
    )


def _turn(runner: Runner, options: argparse.Namespace) -> dict[str, list[float]]:
    """The times of one run of everything that a file does."""
    if not any(name.startswith(PAST) for name in runner.inputs):
        feeds = {name: _filled(name, value.shape, value.type) for name, value in runner.inputs.items()}
        return {"run": [_timed(lambda: runner.run(feeds))]}
    decoder = Decoder(runner)
    ids = torch.arange(3, 3 + options.prompt).view(1, -1)
    past, steps = decoder.empty(), list[float]()
    start = time.perf_counter()
    _, past = decoder.step(ids, 0, past)
    first = time.perf_counter() - start
    for _ in range(options.tokens):
        ids = torch.cat([ids, torch.tensor([[7]])], 1)
        start = time.perf_counter()
        _, past = decoder.step(ids, ids.shape[1] - 1, past)
        steps.append(time.perf_counter() - start)
    return {"prefill": [first], "decode": steps}


def _filled(name: str, shape: list[int | str], kind: str) -> Tensor:
    sizes = [size if isinstance(size, int) else _SIZES[size] for size in shape]
    if "float" in kind:
        return torch.zeros(sizes)
    return torch.ones(sizes, dtype=torch.long) * (name != "token_type_ids")


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def realised(dense: Measured, one: Measured) -> dict[str, float]:
    """The share of the saved products that shows in the median time; nothing where none were saved."""
    saved = 1 - one.products / dense.products
    if saved <= 0:
        return {}
    return {
        what: (1 - statistics.median(times) / statistics.median(dense.seconds[what])) / saved
        for what, times in one.seconds.items()
    }


def _memory(folder: Path, options: argparse.Namespace) -> int:
    """The peak memory of a process that opens a file and runs it once, in bytes, less that of one that does not."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before = pool.apply(peak_memory)
        return int(pool.apply(_once, (folder, options))) - int(before)


def _once(folder: Path, options: argparse.Namespace) -> int:
    _turn(open_model(folder / MODEL, options.provider, threads=options.threads), options)
    return peak_memory()
