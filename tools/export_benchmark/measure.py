"""Times of several exported folders, taken in turns."""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters import scoring
from graphprune.exporters.generation import Decoder
from graphprune.exporters.onnx_files import model_file
from graphprune.exporters.onnx_runtime import Runner
from graphprune.exporters.subjects import PAST
from graphprune.pruning import peak_memory
from tools.export_benchmark.labelled import Item, answers, items
from tools.export_benchmark.opened import Opened, opened
from tools.export_benchmark.products import products

_SIZES = {"batch_size": 1, "sequence_length": 128}  # of models without a cache


@dataclass
class Measured:
    """What was measured of a folder; seconds of each run by what it did, and per token where a decoder wrote.

    `products` are known of ONNX files, `right` is the share of labelled items.
    """

    folder: str
    target: str
    options: dict[str, object]
    parameters: int
    bytes: int
    products: int | None
    worst: float
    memory: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    perplexity: dict[str, float] = field(default_factory=dict)
    right: float | None = None
    realised: dict[str, float] = field(default_factory=dict)


def measure(options: argparse.Namespace) -> list[Measured]:
    """Measure all folders; each is compared with the first that was exported with the same options."""
    memory = [_memory(folder, options) for folder in options.folders]  # first: a process begins with its parent's peak
    found = [_facts(folder, used) for folder, used in zip(options.folders, memory, strict=True)]
    given = _items(options, options.items)
    models = [opened(folder, options.provider, options.threads) for folder in options.folders]
    if given:
        _answer(found, models, given)
    else:
        _take_turns(found, models, options)
    for one, folder in zip(found, options.folders, strict=True):
        one.perplexity = {
            text: scoring.evaluate(folder, text, windows=options.windows, provider=options.provider).perplexity
            for text in options.text
        }
        alike = [other for other in found if (other.target, other.options) == (one.target, one.options)]
        one.realised = realised(alike[0], one)
    return found


def _items(options: argparse.Namespace, most: int | None) -> list[Item]:
    return items(options.labelled, options.tokenizer or options.folders[0], most) if options.labelled else []


def _answer(found: Sequence[Measured], models: Sequence[Opened], given: Sequence[Item]) -> None:
    for one, right, seconds in zip(found, *answers(given, models), strict=True):
        one.right, one.seconds = right, {"item": seconds}


def _take_turns(found: Sequence[Measured], models: Sequence[Opened], options: argparse.Namespace) -> None:
    for turn in range(options.repeats + 1):
        for one, model in zip(found, models, strict=True):
            for what, seconds in _turn(model, options).items():
                one.seconds.setdefault(what, []).extend(seconds * (turn > 0))  # the first warms up


def _facts(folder: Path, memory: int) -> Measured:
    report = json.loads((folder / "export_report.json").read_text(encoding="utf-8"))
    worst = max((case["worst"] for case in report["parity"].values()), default=report.get("error", {}).get("relative"))
    path = model_file(folder)
    count = products(path) if path is not None else None
    return Measured(
        folder.name,
        report["target"],
        report["options"],
        report["parameters"],
        report["bytes"],
        count,
        worst,
        memory,
    )


def _turn(model: Opened, options: argparse.Namespace) -> dict[str, list[float]]:
    """The times of one run of everything that a file does.

    Raises:
        ExportError: if it is no ONNX file.
    """
    runner = model.runs
    if not isinstance(runner, Runner):
        raise ExportError("exports that are no ONNX files are measured on labelled items; give --labelled FILE")
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
    saved = 1 - one.products / dense.products if one.products and dense.products else 0
    if saved <= 0:
        return {}
    return {
        what: (1 - statistics.median(times) / statistics.median(dense.seconds[what])) / saved
        for what, times in one.seconds.items()
    }


def _memory(folder: Path, options: argparse.Namespace) -> int:
    """By how many bytes the peak memory of a process grows when it opens a folder and runs it once."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(_once, folder, options).result()


def _once(folder: Path, options: argparse.Namespace) -> int:
    given = _items(options, 1)
    before = peak_memory()
    model = opened(folder, options.provider, options.threads)
    if given:
        answers(given, [model])
    else:
        _turn(model, options)
    return peak_memory() - before
