"""Folder of a trimmed model: weights, configuration and tokenizer with fewer tokens."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import ExportError, LoadError
from graphprune.exporters.model_folders.folder_files import copy_companion_files, write_config
from graphprune.exporters.model_folders.module_folders import follow_width
from graphprune.frontends import checkpoints
from graphprune.frontends.huggingface import load
from graphprune.huggingface import model_folder, per_layer
from graphprune.huggingface.meta_models import from_table, on_meta
from graphprune.ir import weight_files
from graphprune.ir.program import Program
from graphprune.ir.weights import Stored, narrow
from graphprune.support.packages import tokenizers
from graphprune.vocabulary import tokenizer_files
from graphprune.vocabulary.identifiers import named, renumbered, require_known
from graphprune.vocabulary.mean_rows import MeanRows, mean_rows
from graphprune.vocabulary.tokenizer_table import TokenizerTable
from graphprune.vocabulary.vocabulary_axes import TensorDim, VocabularyAxes, resized

_NAMING = (model_folder.CONFIG, model_folder.GENERATION, "preprocessor_config.json", "processor_config.json")


def encode_whole(tokenizer: Any) -> Any:
    """The tokenizer, of which a file may set that texts are truncated and padded, without that."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True)
class TrimSource:
    """Model, its tokenizer, and the dimensions that tokens index."""

    folder: Path
    settings: Any
    tokenizer: Any
    table: TokenizerTable

    @classmethod
    def read(cls, folder: Path) -> "TrimSource":
        """Read the settings and the tokenizer of a folder.

        Raises:
            LoadError: if they cannot be read, or do not fit together.
        """
        settings = model_folder.config(folder)
        if per_layer.is_per_layer(settings):
            raise LoadError(
                f"{folder} has layers of different widths and a code file of its own; trim first, then prune"
            )
        tokenizer = model_folder.tokenizer(folder)
        table = TokenizerTable.of(folder, tokenizer)
        tokenizer_files.require_agreement(folder, table)
        encode_whole(tokenizer)
        source = cls(folder, settings, tokenizer, table)
        source.require_rows()
        for path in source.naming:
            require_known(model_folder.read_json(path), source.rows, source.texts, str(path))
        return source

    @cached_property
    def program(self) -> Program:
        """The captured model.

        Raises:
            TraceError: if torch.export refuses it.
        """
        return load(self.folder)

    @cached_property
    def axes(self) -> VocabularyAxes:
        """Dimensions that tokens index.

        Raises:
            ExportError: if there are none, or not of the size that the configuration has for the vocabulary.
        """
        axes = VocabularyAxes.of(self.program)
        if axes.rows != self.rows:
            raise ExportError(
                f"{self.folder / model_folder.CONFIG} has a vocabulary of {self.rows:,} tokens, and the model a "
                f"table of {axes.rows:,} rows"
            )
        return axes

    @cached_property
    def rows(self) -> int:
        """Number of rows for tokens, by the configuration."""
        return int(self.settings.get_text_config().vocab_size)

    def require_rows(self) -> None:
        """Check that every token that text can have has a row.

        Raises:
            LoadError: if one has none.
        """
        beyond = {token for token, i in self.table.kind.ids.items() if i >= self.rows}
        if lacking := sorted(beyond - self.table.added.keys()):
            raise LoadError(
                f"{self.table.name} has {len(lacking)} tokens beyond the {self.rows:,} rows of the model, the first "
                f"{lacking[0]!r}; one of the two belongs to another model"
            )

    @property
    def naming(self) -> list[Path]:
        """Files that may name identifiers of tokens."""
        return [self.folder / name for name in _NAMING if (self.folder / name).is_file()]

    @cached_property
    def texts(self) -> dict[int, str]:
        """Tokens by their identifiers."""
        return {number: token for token, number in self.table.ids.items()}

    def required(self) -> set[str]:
        """Tokens that must be retained: by the tokenizer, by files and by the chat template."""
        tables = [self.settings.to_dict(), *map(model_folder.read_json, self.naming)]
        numbers = {i for table in tables for some in named(table, self.rows).values() for i in some}
        templates = self.tokenizer.chat_template or ""
        texts = templates.values() if isinstance(templates, Mapping) else [templates]
        numbers |= {i for text in texts for i in self.tokenizer.backend_tokenizer.encode(str(text)).ids}
        numbers |= {*self.tokenizer.all_special_ids}
        return self.table.required() | {self.texts[i] for i in numbers if i in self.texts}

    def means(self, retained: Mapping[int, int], counts: Mapping[int, int]) -> MeanRows:
        """Means of rows for the tokens of a corpus that are removed."""
        reduced = tokenizers.Tokenizer.from_str(json.dumps(self.table.reduced(retained)))
        return mean_rows(self.tokenizer, reduced, retained, counts, self.rows)

    def parameters(self) -> int:
        """Number of parameters of the model, those that a call does not use included."""
        return sum(weight.numel() for weight in on_meta(self.settings).parameters())


@dataclass(frozen=True)
class Written:
    """Number of rows of a written model, and notes."""

    rows: int
    notes: list[str]


def write_trimmed(source: TrimSource, retained: Mapping[int, int], means: MeanRows | None, folder: Path) -> Written:
    """Fill a folder with a model that has the retained tokens, by their new identifiers.

    Raises:
        ExportError: if the class of the model cannot have so few, or a weight cannot be read.
    """
    before = source.rows
    numbers = torch.tensor(sorted(i for i in retained if i < before))
    table = renumbered(source.settings.to_dict(), before, retained)
    settings = from_table(type(source.settings), table)
    config, dims = resized(settings, source.axes, source.program.shapes(), len(numbers))
    copy_companion_files(source.folder, folder)
    follow_width(folder, before, len(numbers))
    notes = tokenizer_files.write(folder, source.table, retained)
    for path in source.naming:
        if path.name != model_folder.CONFIG:
            other = renumbered(model_folder.read_json(path), before, retained)
            (folder / path.name).write_text(json.dumps(other, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    stored = checkpoints.entries(source.folder)
    config.architectures = copy.copy(source.settings.architectures)
    write_config(folder, config, checkpoints.stored_dtype(stored))
    if unused := before - sum(i < before for i in source.texts):
        notes.append(f"{unused:,} rows that belong to no token of the tokenizer were removed")
    return Written(len(numbers), [*notes, *_write_weights(source, stored, dims, numbers, means, folder)])


def _write_weights(
    source: TrimSource, stored: Mapping[str, checkpoints.Entry], dims: frozenset[TensorDim], numbers: Tensor,
    means: MeanRows | None, folder: Path,
) -> list[str]:  # fmt: skip
    """Write the stored tensors under their names, in their types, cut to the rows `numbers`; return notes."""
    matched = checkpoints.match(on_meta(source.settings), stored)
    cut = {matched[name].key: dim for name, dim in dims if name in matched}
    if lost := sorted(name for name, _ in dims if name not in matched):
        raise ExportError(
            f"{source.folder} stores {lost[0]} in another form than the class of the model has it; save the folder "
            "with transformers first, then trim that"
        )
    used = {entry.key for entry in matched.values()}
    unknown = [key for key, entry in stored.items() if key not in used and source.rows in entry.shape]
    every = Stored(
        {key: (entry.path, key) for key, entry in stored.items()},
        stamps={entry.path: entry.stamp for entry in stored.values()},
    )
    skeleton = {key: _empty(entry, cut.get(key), len(numbers)) for key, entry in stored.items() if key not in unknown}

    def read(key: str) -> Tensor:
        tensor = every[key]
        if key not in cut:
            return tensor
        return narrow(means.applied(tensor, cut[key]) if means else tensor, cut[key], numbers)

    weight_files.write_shards(folder, skeleton, read)
    return [f"{key}, which belongs to no weight of the model, was left out" for key in unknown]


def _empty(entry: checkpoints.Entry, dim: int | None, size: int) -> Tensor:
    """Tensor of the type and shape of a stored one, with another size of a dimension, without memory."""
    shape = [size if i == dim else n for i, n in enumerate(entry.shape)]
    types = {name: dtype for dtype, name in weight_files.DTYPE_NAMES.items()}
    return torch.empty(shape, dtype=types[entry.dtype], device="meta")
