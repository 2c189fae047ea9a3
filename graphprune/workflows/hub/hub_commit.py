"""Models of the hub in options: records name their commit, and runs read their folder in the cache."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from graphprune.errors import OptionError
from graphprune.huggingface.hub_models import hub_model, local_path
from graphprune.huggingface.model_folder import TOKENIZERS
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.source_options import HubSource

Options = TypeVar("Options", bound=HubSource)


def pinned(options: Options, model: object) -> Options:
    """Options whose revision is the commit of a model of the hub, so that they can be repeated; else unchanged.

    The model is downloaded, if it is not in the cache and that is allowed.

    Raises:
        LoadError: if it is neither in the cache nor can be downloaded, or a model in local files has a revision.
        OptionError: if a model in memory has one.
    """
    if not isinstance(model, str | Path):
        if options.revision is not None:
            raise OptionError("revision names a commit of a model of the hub, and there is none; omit it")
        return options
    known = hub_model(model, options.revision, options.offline)
    return options if known is None else replace(options, revision=known.commit)


def tokenizer_of(options: PruneOptions) -> str | Path | None:
    """Folder of the tokenizer: that of the options, or the repository of a file of the hub that has none of its own."""
    known = hub_model(str(options.model), options.revision, options.offline)
    if options.tokenizer is not None or known is None or not known.file:
        return options.tokenizer
    alone = not any((known.path.parent / name).is_file() for name in TOKENIZERS)
    return known.folder if alone else None


def path_of(options: HubSource, model: str | Path) -> str | Path:
    """Path of a model of pinned options, in the cache if it is one of the hub."""
    return local_path(model, options.revision, options.offline)
