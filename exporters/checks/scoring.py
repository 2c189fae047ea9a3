"""Perplexity of an exported decoder on a text, computed with ONNX Runtime alone."""

from pathlib import Path

from graphprune.errors import ExportError
from graphprune.evaluation.perplexity import Evaluation, perplexity, windows_of
from graphprune.exporters.checks.generation import Decoder, open_decoder
from graphprune.exporters.onnx_tools.sessions import CPU


def evaluate(
    folder: Path, text: str | Path, *, length: int = 512, windows: int | None = None, provider: str = CPU
) -> Evaluation:
    """Measure the perplexity of an exported folder, as `perplexity.evaluate` does for a model.

    Raises:
        ExportError: if the folder has no decoder, or one with static sizes.
        LoadError: if the tokenizer or the text cannot be read.
        CalibrationError: if the text is too short, or the logits are not finite.
    """
    runner = open_decoder(folder, provider)
    if all(isinstance(size, int) for size in runner.inputs["input_ids"].shape):
        raise ExportError(f"{folder} has a decoder with static sizes; export it without --static to measure perplexity")
    return perplexity(Decoder(runner).logits, windows_of(folder, text, length, windows))
