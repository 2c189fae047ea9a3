"""Times of several exported folders, taken in turns."""

import argparse
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
from graphprune.evaluation.perplexity import perplexity, windows_of
from graphprune.exporters.export_folders import export_report
from graphprune.exporters.onnx_tools.onnx_files import model_file
from graphprune.exporters.onnx_tools.sessions import OnnxRunner
from graphprune.support.memory import peak_memory
from tools.export_benchmark.labelled import Item, answers, items
from tools.export_benchmark.opened import Opened, opened
from tools.export_benchmark.products import products
from tools.export_benchmark.readers import Genai, Reader, Window, reader_of

WINDOW = 512  # tokens of a text that are measured together

_SIZES = {"batch_size": 1, "sequence_length": 128}  # of models without a cache


@dataclass
class Measured:
    """Measurements of a folder: seconds of each run by task, those of decoders per token.

    `products` are counted in ONNX files only; `right` is the accuracy on labeled items.
    """

    folder: str
    target: str
    options: dict[str, object]
    parameters: int
    bytes: int
    products: int | None
    worst: float | None
    memory: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    perplexity: dict[str, float | None] = field(default_factory=dict)
    right: float | None = None
    realised: dict[str, float] = field(default_factory=dict)


def measure(options: argparse.Namespace) -> list[Measured]:
    """Measure all folders; each is compared with the first that was exported with the same options."""
    memory = [_memory(folder, options) for folder in options.folders]  # first: a process begins with its parent's peak
    measured = [_facts(folder, used) for folder, used in zip(options.folders, memory, strict=True)]
    given = _items(options, options.items)
    texts = {text: windows_of(_tokenizer(options), text, WINDOW, options.windows) for text in options.text}
    models = [opened(folder, options.provider, options.threads, _longest(options)) for folder in options.folders]
    readers = [reader_of(model, _longest(options)) for model in models]
    if given:
        _answer(measured, models, given)
    else:
        _take_turns(measured, models, readers, options)
    for one, reader in zip(measured, readers, strict=True):
        one.perplexity = {text: _perplexity(reader, windows) for text, windows in texts.items()}
        alike = [other for other in measured if (other.target, other.options) == (one.target, one.options)]
        one.realised = realised(alike[0], one)
    return measured


def _items(options: argparse.Namespace, most: int | None) -> list[Item]:
    return items(options.labelled, _tokenizer(options), most) if options.labelled else []


def _tokenizer(options: argparse.Namespace) -> Path:
    folder: Path = options.tokenizer or options.folders[0]
    return folder


def _answer(measured: Sequence[Measured], models: Sequence[Opened], given: Sequence[Item]) -> None:
    for one, right, seconds in zip(measured, *answers(given, models), strict=True):
        one.right, one.seconds = right, {"item": seconds}


def _take_turns(
    measured: Sequence[Measured],
    models: Sequence[Opened],
    readers: Sequence[Reader | None],
    options: argparse.Namespace,
) -> None:
    for turn in range(options.repeats + 1):
        for one, model, reader in zip(measured, models, readers, strict=True):
            for what, seconds in _turn(model, reader, options).items():
                one.seconds.setdefault(what, []).extend(seconds * (turn > 0))  # the first warms up


def _facts(folder: Path, memory: int) -> Measured:
    report = export_report.read(folder / export_report.REPORT)
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


def _turn(model: Opened, reader: Reader | None, options: argparse.Namespace) -> dict[str, list[float]]:
    """The times of one run of everything that a file does; `reader` is the decoder in it, if it is one.

    Raises:
        ExportError: if it is no decoder and no ONNX file.
    """
    if reader is not None:
        return _written(reader, options)
    if not isinstance(model.runs, OnnxRunner):
        raise ExportError("what is no decoder and no ONNX file is measured on labelled items; give --labelled FILE")
    feeds = {name: _filled(name, value.shape, value.type) for name, value in model.runs.inputs.items()}
    return {"run": [_timed(lambda: model.runs.run(feeds))]}


def _written(reader: Reader, options: argparse.Namespace) -> dict[str, list[float]]:
    """The seconds of a prompt, per token, and of each token after it."""
    prompt, next_one = torch.arange(3, 3 + options.prompt).view(1, -1), torch.tensor([[7]])
    reader.restart()
    first = _timed(lambda: reader.read(prompt)) / options.prompt
    return {"prefill": [first], "decode": [_timed(lambda: reader.read(next_one)) for _ in range(options.tokens)]}


def _perplexity(reader: Reader | None, windows: Tensor) -> float | None:
    """How a decoder takes a text; None of one that does not tell all logits, or forgets where it began."""
    if reader is None or isinstance(reader, Genai) or (isinstance(reader, Window) and reader.places < WINDOW):
        return None

    def logits(input_ids: Tensor) -> Tensor:
        return torch.cat([_whole(reader, ids[None]) for ids in input_ids])

    return perplexity(logits, windows).perplexity


def _whole(reader: Reader, ids: Tensor) -> Tensor:
    reader.restart()
    return reader.read(ids).float()


def _longest(options: argparse.Namespace) -> int:
    return max(WINDOW if options.text else 0, int(options.prompt + options.tokens))


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
    model = opened(folder, options.provider, options.threads, _longest(options))
    if given:
        answers(given, [model])
    else:
        _turn(model, reader_of(model, _longest(options)), options)
    return peak_memory() - before
