"""Options of trimming a vocabulary; as those of pruning, each has its name, type, default and help text in one place.

This file imports no torch, so that help texts are shown at once.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from graphprune.errors import OptionError
from graphprune.statistics.data_files import TEXTS
from graphprune.workflows.option_fields import OptionGroup, option, required
from graphprune.workflows.options import Texts
from graphprune.workflows.source_options import AdapterFolder, HubSource, PathLike

MODEL = "A Hugging Face folder with its tokenizer, a model of the hub (org/name), or a .gguf file."


@dataclass(frozen=True, kw_only=True)
class Tokens(OptionGroup):
    """Options for the tokens that are retained."""

    title: ClassVar[str] = "Tokens"
    tokens: int | None = option(None, "How many tokens to retain, the most frequent ones.", least=1)
    coverage: float | None = option(
        None,
        "The share of the tokens of the corpus that remain whole, the others are spelled by smaller ones; 0.9999 by "
        "default.",
        share=True,
    )
    keep_script: Texts = option(
        (), "Also retain all tokens in a script of Unicode, such as Latin or Greek.", metavar="SCRIPT"
    )
    keep: PathLike | None = option(
        None, "Also retain the tokens of the lines of this file: words, names, special marks.", metavar="FILE"
    )
    predicted: int = option(
        0,
        "Also count the tokens that a causal model expects in so many windows of the corpus: they rank tokens that the "
        "corpus does not have.",
        least=0,
    )
    align: int = option(64, "The number of tokens is a multiple of this number; more tokens fill it up.", least=1)
    mean_rows: bool = option(
        False,
        "Move the row of a token towards those of the removed tokens that begin with it, to their mean by frequency.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens is not None and self.coverage is not None:
            raise OptionError("give either tokens (a number) or coverage (a share of the corpus)")


@dataclass(frozen=True, kw_only=True)
class TrimOptions(Tokens, HubSource, AdapterFolder):
    """Options of `graphprune.trim`."""

    model: PathLike = field(kw_only=False, metadata=required(MODEL, metavar="MODEL"))
    text: Texts = option((), f"A corpus in the languages that the model has to know: {TEXTS}.", metavar="TEXT")
    evaluate: Texts = option((), "Measure bits per byte and tokens per word on this text.", metavar="TEXT")
    windows: int = option(64, "Windows of each such text.", least=1)
    length: int = option(512, "Tokens in a window, at most.", least=2)
    output: PathLike | None = option(
        None, "The new folder; it appears when all is done.", metavar="DIR", flags="--output -o"
    )
    force: bool = option(
        False, "Replace an existing output once the new one is complete.", flags="--force", outcome=False
    )
