"""Run of `graphprune.trim`: choose tokens, cut their rows, verify, save, report."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from graphprune.errors import LoadError, OptionError
from graphprune.evaluation.bits_per_byte import TextCost, cost, windows_of_text
from graphprune.exporters.model_folders.folder_files import require_output
from graphprune.frontends import adapter_folders, gguf_models
from graphprune.huggingface import model_folder
from graphprune.reports.report import digests
from graphprune.statistics.documents import documents
from graphprune.statistics.texts import SEPARATOR, read, samples
from graphprune.support.atomic_output import new_folder
from graphprune.support.tokenizing import tokenizing
from graphprune.vocabulary.expected_tokens import expected
from graphprune.vocabulary.mean_rows import MeanRows
from graphprune.vocabulary.scripts import of_scripts
from graphprune.vocabulary.token_selection import Amount, TokenSelection, counted
from graphprune.workflows.hub.hub_commit import path_of, pinned
from graphprune.workflows.option_fields import takes
from graphprune.workflows.runs import run_file
from graphprune.workflows.runs.run_record import reproduction
from graphprune.workflows.trimming.trim_options import Tokens, TrimOptions
from graphprune.workflows.trimming.trim_record import Trimming
from graphprune.workflows.trimming.trimmed_folder import TrimSource, encode_whole, write_trimmed
from graphprune.workflows.trimming.trimmed_outputs import Sample, require_agreement, require_round_trips

log = logging.getLogger("graphprune.run")
COVERAGE = 0.9999
FILE = "trim.yaml"
WINDOW = 256  # tokens of a window on which the model predicts
SHOWN = 200  # documents that are encoded and decoded as a test


@takes(TrimOptions)
def trim(options: TrimOptions) -> Trimming:
    """Remove the tokens that a corpus does not need from a model and its tokenizer, and save both, verified.

    The most frequent tokens of the corpus are retained, with those that they are merged from, special and added tokens,
    and those that a configuration or a chat template names; every text can still be written, by smaller tokens where
    its own are removed. The output loads like the original. For texts whose tokens are all retained it has the same
    tokens and the same outputs.

    Raises:
        GraphpruneError: a subclass of it, for any input that cannot be trimmed as requested; nothing is written then.
    """
    if not options.text:
        raise TypeError("trim(): missing a required argument: 'text'")
    if options.output is None:
        raise TypeError("trim(): missing a required argument: 'output'")
    start, output = time.perf_counter(), Path(options.output)
    options = pinned(options, options.model)
    folder = source_folder(path_of(options, options.model), options.merge_adapters)
    require_output(folder, output, options.force)
    windows = {str(text): windows_of_text(text, options.length, options.windows) for text in options.evaluate}
    run = TrimRun.of(folder, options, options.text)
    before = run.measured(windows)
    with new_folder(output, options.force) as unfinished:
        made = run.fill(unfinished, before, windows)
        (unfinished / FILE).write_text(run_file.text(options, "trim", FILE), encoding="utf-8")
        made = replace(
            made, model=str(options.model), command=reproduction("trim", options), sha256=digests(unfinished),
            seconds=time.perf_counter() - start,
        )  # fmt: skip
        made.save(unfinished)
    return made


def source_folder(model: str | Path, merge_adapters: bool = False) -> Path:
    """Folder of a model with its tokenizer, with an adapter merged if requested.

    Raises:
        LoadError: if it is no folder of a model of transformers, and no GGUF file.
    """
    if merge_adapters:
        return adapter_folders.merged(Path(model))
    if str(model).lower().endswith(".gguf"):
        return gguf_models.folder(model)
    if model_folder.is_folder(Path(model)):
        return Path(model)
    kind = "a graph, whose vocabulary is fixed: trim first, then prune" if model_folder.holds_graph(Path(model)) else ""
    raise LoadError(
        f"cannot trim {str(model)!r}: {f'it holds {kind}' if kind else 'it is none of these'}; expected a Hugging Face "
        "folder with its tokenizer, or a .gguf file"
    )


@dataclass(frozen=True)
class _Before:
    """Outputs and costs of the original."""

    outputs: Sequence[Any]
    costs: Mapping[str, TextCost]


@dataclass(frozen=True)
class TrimRun:
    """Model with the tokens that it retains, and texts by which the result is checked."""

    source: TrimSource
    retained: Mapping[int, int]
    coverage: float
    means: MeanRows | None
    sample: Sample
    texts: Sequence[str]

    @classmethod
    def of(cls, folder: Path, options: Tokens, corpus: Sequence[str | Path]) -> "TrimRun":
        """Choose the tokens of a model by a corpus.

        Raises:
            GraphpruneError: a subclass of it, if the model, its tokenizer or the corpus cannot be used.
        """
        source = TrimSource.read(folder)
        counts = counted(source.tokenizer, _texts(corpus))
        required = source.required() | _kept(source, options)
        expected = _expected(source, options, corpus, counts.total()) if options.predicted else {}
        selection = TokenSelection(source.table, counts, frozenset(required), source.rows, expected)
        amount = Amount(options.tokens, options.coverage or COVERAGE, options.align)
        retained = selection.chosen(amount)
        means = source.means(retained, counts) if options.mean_rows else None
        sample = Sample.of(source, retained, means.changed if means else set())
        log.info("%s: %d of %d tokens are retained", folder, len(retained), len(source.table.ids))
        texts = [text for text, _ in zip(_texts(corpus), range(SHOWN), strict=False)]
        return cls(source, retained, selection.coverage(retained), means, sample, texts)

    def measured(self, windows: Mapping[str, Sequence[str]]) -> _Before:
        """Run the original."""
        module = model_folder.module(self.source.folder)
        return _Before(self.sample.outputs(module, self.source.rows), self._costs(module, windows))

    def fill(self, folder: Path, before: _Before, windows: Mapping[str, Sequence[str]]) -> Trimming:
        """Write the trimmed model into a folder, and check it.

        Raises:
            ExportError: if it cannot be written.
            VerificationError: if it differs from the original where it must not.
        """
        written = write_trimmed(self.source, self.retained, self.means, folder)
        tokenizer, module = encode_whole(model_folder.tokenizer(folder)), model_folder.module(folder)
        require_round_trips(self.source.tokenizer, tokenizer, self.retained, self.texts)
        error = require_agreement(before.outputs, self.sample.renumbered(self.retained).outputs(module, written.rows))
        after = self._costs(module, windows, tokenizer)
        return Trimming(
            model=str(self.source.folder),
            tokens=(len(self.source.table.ids), len(self.retained)),
            parameters=(self.source.parameters(), sum(weight.numel() for weight in module.parameters())),
            bytes=(_bytes(self.source.folder), _bytes(folder)),
            coverage=self.coverage,
            error=error,
            texts={text: (before.costs[text], after[text]) for text in windows},
            seconds=0.0,
            command="",
            notes=tuple(written.notes),
        )

    def _costs(self, module: Any, windows: Mapping[str, Sequence[str]], tokenizer: Any = None) -> dict[str, TextCost]:
        """Costs of texts; bits only of models that generate text."""
        causal = model_folder.generates_text(type(module), self.source.settings)
        tokenizer = tokenizer or self.source.tokenizer
        return {text: cost(module if causal else None, tokenizer, some) for text, some in windows.items()}


def _expected(source: TrimSource, options: Tokens, corpus: Sequence[str | Path], tokens: int) -> dict[int, float]:
    """Counts of tokens that the model expects in the corpus."""
    module = model_folder.module(source.folder)
    if not model_folder.generates_text(type(module), source.settings):
        raise OptionError(f"{type(module).__name__} predicts no next tokens; omit predicted")
    text = SEPARATOR.join(_texts(corpus))
    windows = samples(source.tokenizer, text, options.predicted, WINDOW, 0)
    if (start := source.tokenizer.bos_token_id) is not None:
        windows = torch.cat((torch.full((len(windows), 1), start), windows), 1)
    return expected(module, windows, tokens)


def _texts(corpus: Sequence[str | Path]) -> Iterator[str]:
    return (document.text for name in corpus for document in documents(name))


def _kept(source: TrimSource, options: Tokens) -> set[str]:
    """Tokens that are retained by request."""
    backend = source.tokenizer.backend_tokenizer
    tokens = set[str]()
    if options.keep is not None:
        lines = [line for line in read(options.keep).splitlines() if line]
        if not lines:
            raise OptionError(f"{options.keep} has no line; write a word, a name or a token on each")
        tokens |= {line for line in lines if line in source.table.ids}
        with tokenizing():
            tokens.update(*(encoding.tokens for encoding in backend.encode_batch(lines, add_special_tokens=False)))
    if options.keep_script:
        scripts = [script for names in options.keep_script for script in str(names).split(",")]
        texts = {token: backend.decode([i], skip_special_tokens=False) for token, i in source.table.kind.ids.items()}
        tokens |= of_scripts(texts, scripts, texts.__getitem__)
    return tokens


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in model_folder.weight_files(folder))
