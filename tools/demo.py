"""Prune SmolLM2-135M by a fifth, measure before and after, save, export, and let ONNX Runtime continue a sentence."""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune as gp
from graphprune.cli.edge import prepare
from graphprune.exporters.checks.generation import generate
from graphprune.frontends import gguf_models
from tools.packaged import packaged

SENTENCE = "The Python programming language is"
TOKENS = 32
console = Console()


@dataclass(frozen=True)
class Measured:
    """A model in numbers: parameters, bytes of weights, perplexity, and new tokens a second."""

    parameters: int
    size: int
    perplexity: float
    speed: float


def main() -> None:
    """Run the demo."""
    options = arguments()
    prepare()
    start = time.perf_counter()
    console.rule("taking SmolLM2-135M from its package")
    dense = gguf_models.folder(packaged())
    console.rule(f"pruning {options.sparsity:.0%} with FASP, calibrated on the first half of Python's help texts")
    pruned = options.output / "pruned"
    gp.prune(
        str(dense), recipe="fasp", sparsity=options.sparsity, calibration="pydoc:first", output=str(pruned),
        samples=options.samples, force=True,
    )  # fmt: skip
    console.rule("measuring on the second half")
    speeds = tokens_per_second(dense, pruned)
    show(measure(dense, options.windows, speeds[0]), measure(pruned, options.windows, speeds[1]))
    console.rule("exporting to ONNX with a key/value cache, checked against PyTorch")
    exported = options.output / "onnx"
    gp.export(str(pruned), target="onnx", output=str(exported), force=True)
    console.rule("ONNX Runtime continues a sentence")
    console.print(f"[bold]{SENTENCE}[/bold]{escape(generate(exported, SENTENCE, TOKENS))}")
    console.print(f"\nHugging Face folder: {pruned}\nONNX: {exported}\n{time.perf_counter() - start:.0f} s in all")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="where the results go")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--samples", type=int, default=48, help="calibration windows of 512 tokens")
    parser.add_argument("--windows", type=int, default=32, help="windows of 512 tokens to measure on")
    return parser.parse_args()


def tokens_per_second(*folders: Path) -> list[float]:
    """How fast each model writes with plain transformers; in turns, so that a busy machine slows both alike."""
    models: list[Any] = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    prompt = AutoTokenizer.from_pretrained(folders[0])(SENTENCE, return_tensors="pt")
    best = [0.0 for _ in models]
    for _ in range(4):
        for i, model in enumerate(models):
            start = time.perf_counter()
            model.generate(**prompt, min_new_tokens=TOKENS, max_new_tokens=TOKENS, do_sample=False)
            best[i] = max(best[i], TOKENS / (time.perf_counter() - start))
    return best


def measure(folder: Path, windows: int, speed: float) -> Measured:
    """Count and weigh a model, and see how well it predicts."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Measured(
        parameters=sum(p.numel() for p in model.parameters()),
        size=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        perplexity=gp.evaluate(folder, "pydoc:second", length=512, windows=windows).perplexity,
        speed=speed,
    )


def show(before: Measured, after: Measured) -> None:
    """The table of both."""
    table = Table("", "before", "after", "change")
    rows = {
        "parameters": (before.parameters, after.parameters, "{:,}"),
        "weights, MB": (before.size / 1e6, after.size / 1e6, "{:,.1f}"),
        "perplexity": (before.perplexity, after.perplexity, "{:.2f}"),
        "tokens/s": (before.speed, after.speed, "{:.1f}"),
    }
    for name, (old, new, form) in rows.items():
        table.add_row(name, form.format(old), form.format(new), f"{new / old - 1:+.1%}")
    console.print(table)


if __name__ == "__main__":
    try:
        main()
    except gp.GraphpruneError as fault:
        sys.exit(f"error: {fault}")
