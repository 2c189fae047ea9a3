"""Record of a trim: sizes, costs of texts and errors, in a file of the trimmed folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from graphprune.evaluation.bits_per_byte import TextCost
from graphprune.huggingface import model_folder
from graphprune.ir.program import Program
from graphprune.reports.report import plain
from graphprune.version import __version__

FILE = "trim.json"


@dataclass(frozen=True)
class Trimming:
    """Record of a trim, with pairs of values before and after.

    `tokens` counts those of the tokenizer, `bytes` those of the weights' files. `coverage` is the share of the tokens
    of the corpus that remain whole, `error` the largest relative difference of the outputs for retained tokens.
    `texts` holds the costs of the evaluation texts.
    """

    model: str
    tokens: tuple[int, int]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    coverage: float
    error: float
    texts: Mapping[str, tuple[TextCost, TextCost]]
    seconds: float
    command: str
    notes: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict, repr=False)
    version: str = __version__

    def __repr__(self) -> str:
        sizes = {"tokens": self.tokens, "parameters": self.parameters, "bytes": self.bytes}
        lines = [f"Trimming of {self.model}: {self.coverage:.4%} of the tokens of the corpus remain whole"]
        lines += [f"  {name}: {a:,} -> {b:,} ({b / a - 1:+.1%})" for name, (a, b) in sizes.items()]
        lines += [f"  {line}" for line in self.costs()]
        return "\n".join((*lines, *(f"  {note}" for note in self.notes)))

    def costs(self) -> list[str]:
        """Costs of the evaluation texts in words."""
        lines = []
        for text, (before, after) in self.texts.items():
            lines.append(f"tokens per word: {before.tokens_per_word:.3f} -> {after.tokens_per_word:.3f} on {text}")
            if before.bits_per_byte is not None and after.bits_per_byte is not None:
                change = after.bits_per_byte / before.bits_per_byte - 1
                lines.append(
                    f"bits per byte: {before.bits_per_byte:.4f} -> {after.bits_per_byte:.4f} ({change:+.2%}) on {text}"
                )
        return lines

    def save(self, folder: Path) -> None:
        """Write the record into a folder."""
        (folder / FILE).write_text(json.dumps(plain(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def trim_note(program: Program) -> tuple[str, ...]:
    """Note on the tokens that were removed before, for a report."""
    if program.source is None or not (program.source.path / FILE).is_file():
        return ()
    table = model_folder.read_json(program.source.path / FILE)
    (a, b), (c, d) = table["tokens"], table["parameters"]
    return (
        f"the vocabulary was trimmed first: {a:,} -> {b:,} tokens, {c:,} -> {d:,} parameters; {FILE} has the record, "
        "and perplexities are those of the new tokens",
    )
