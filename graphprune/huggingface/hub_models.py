"""Models of the Hugging Face hub, by name: read from the cache of the hub, downloaded only where that is allowed."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from graphprune.errors import LoadError, because, require_path
from graphprune.huggingface.model_folder import (
    CONFIG,
    PICKLES,
    PROGRAM,
    TOKENIZERS,
    require_safetensors,
    weight_files,
)
from graphprune.support.packages import huggingface_hub

log = logging.getLogger("graphprune.run")

FILES = (".onnx", ".gguf", ".pt2")  # suffixes of models in one file
SHOWN = 8  # files in a message
MAIN = "main"
_NAME = re.compile(rf"(\w[\w.-]*/\w[\w.-]*)(?:/(\S+(?:{'|'.join(map(re.escape, FILES))})))?", re.ASCII)
#: Files of a model in a folder. Code and pickles, which may run, are never read, and therefore not downloaded.
_FOLDER = (
    "*.safetensors", "*.json", "*.jinja", "*.txt", "*.tiktoken", *TOKENIZERS, PROGRAM, "README.md", "LICENSE*",
)  # fmt: skip
_TWICE = ("consolidated*", "original/*")  # the same weights in the form of another library


@dataclass(frozen=True)
class HubModel:
    """Model of the hub: its name, its snapshot in the cache, and the `file` of it that holds the model, if one does."""

    name: str
    folder: Path
    file: str = ""

    @property
    def commit(self) -> str:
        """Commit of the snapshot."""
        return self.folder.name

    @property
    def path(self) -> Path:
        """Local folder or file of the model."""
        return self.folder / self.file


def hub_model(model: str | Path, revision: str | None = None, offline: bool = False) -> HubModel | None:
    """Model of the hub with this name, ``org/name`` or ``org/name/file.onnx``; None for anything else.

    Local files and folders take precedence. A snapshot in the cache is used as it is, even if the hub has a newer one.

    Raises:
        LoadError: if it is neither in the cache nor can be downloaded, or a model in local files has a revision.
    """
    repository, file = _split(str(model))
    if not repository:
        if revision is not None:
            raise LoadError(
                f"{model} is no name of the hub (org/name), and only those have a revision; omit {revision}"
            )
        return None
    cached = _cached(repository, revision, file)
    problem = _problem(cached, file) if cached else ""
    if cached and not problem:
        return HubModel(repository, cached, file)
    if offline or constants.HF_HUB_OFFLINE:
        if cached:
            _refuse(repository, file, problem, _names(cached))
        raise LoadError(_absent(repository, revision))
    with _hub_errors(repository, revision):
        return _downloaded(repository, revision or MAIN, file)


def local_path(model: str | Path, revision: str | None = None, offline: bool = False) -> str | Path:
    """Path of a model of the hub in the cache, as `hub_model` finds it; any other model unchanged.

    Raises:
        LoadError: as `hub_model` does.
        OptionError: if it is an object of Python.
    """
    require_path("model", model, "a module is captured by graphprune.trace, a program written by graphprune.save")
    known = hub_model(model, revision, offline)
    return model if known is None else known.path


def _split(text: str) -> tuple[str, str]:
    """Repository, and file in it, that a text names; empty where the text can only be local."""
    match = _NAME.fullmatch(text)
    if match is None or Path(text).exists() or ".." in text or (text.count("/") == 1 and text.endswith(FILES)):
        return "", ""
    repository, file = match[1], match[2] or ""
    return ("", "") if file and Path(repository).exists() else (repository, file)


def _cached(repository: str, revision: str | None, file: str) -> Path | None:
    """Folder of a snapshot in the cache, if possible one that has the model's main file."""
    folder, errors = None, huggingface_hub.errors
    for main in (file,) if file else (CONFIG, PROGRAM):
        try:
            folder = Path(huggingface_hub.snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=[main]
            ))  # fmt: skip
        except (errors.LocalEntryNotFoundError, errors.HFValidationError):
            continue
        if (folder / main).is_file():
            break
    return folder


def _problem(folder: Path, file: str) -> str:
    """Problem with a snapshot, which may be a part of the repository; "" if it holds the model."""
    if file:
        return "" if (folder / file).is_file() else f"{folder} has no {file}"
    if (folder / PROGRAM).is_file():
        return ""
    if not (folder / CONFIG).is_file():
        return f"{folder} has no {CONFIG}"
    try:
        require_safetensors(folder)
        weight_files(folder)
    except LoadError as fault:
        return str(fault)
    return ""


def _downloaded(repository: str, revision: str, file: str) -> HubModel:
    """Download the files of a model."""
    log.info("downloading %s (revision %s) from the hub", repository, revision)
    folder = Path(huggingface_hub.snapshot_download(
        repository, revision=revision, allow_patterns=_patterns(file), ignore_patterns=list(_TWICE)
    ))  # fmt: skip
    if problem := _problem(folder, file):
        _refuse(repository, file, problem, huggingface_hub.HfApi().list_repo_files(repository, revision=folder.name))
    return HubModel(repository, folder, file)


def _patterns(file: str) -> list[str]:
    """Files that a model needs, with its tokenizer and card."""
    whole = [name for name in _FOLDER if name not in ("*.safetensors", PROGRAM)]
    return [file, *_data(file), *whole] if file else list(_FOLDER)


def _data(file: str) -> list[str]:
    """Files that may hold the numbers of an ONNX file."""
    return [f"{file}*data*", f"{file.removesuffix('.onnx')}.data"] if file.endswith(".onnx") else []


def _refuse(repository: str, file: str, problem: str, names: list[str]) -> None:
    """Raise an error for a repository that lacks the model, with the models in files that it has instead."""
    models = sorted(name for name in names if name.endswith(FILES))
    pickles = sorted(name for name in names if any(Path(name).match(pattern) for pattern in PICKLES))
    if models and not file:
        more = f" and {len(models) - SHOWN} more" * (len(models) > SHOWN)
        listed = ", ".join(f"{repository}/{name}" for name in models[:SHOWN])
        raise LoadError(f"{repository} holds no {CONFIG} with safetensors; name one of its files: {listed}{more}")
    if pickles and not file:
        raise LoadError(
            f"{repository} has its weights in {pickles[0]}, which may run code when read; expected safetensors. If you "
            "trust the file, load the model with transformers, call model.save_pretrained(folder), and use that folder"
        )
    shown = ", ".join(sorted(names)[:SHOWN])
    raise LoadError(f"{repository} does not hold the model{because(LoadError(problem))}; it has {shown or 'no files'}")


def _names(folder: Path) -> list[str]:
    """Files of a snapshot in the cache."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _absent(repository: str, revision: str | None) -> str:
    """Message for a model that is not in the cache, while nothing may be downloaded."""
    at = f" --revision {revision}" if revision else ""
    return (
        f"{repository} is no local file or folder, and the cache of the hub, {constants.HF_HUB_CACHE}, has no snapshot "
        f"of{f' revision {revision} of' if revision else ''} a model of this name; nothing is downloaded offline: "
        f"run `hf download {repository}{at}` where there is a network, or omit --offline and unset HF_HUB_OFFLINE"
    )


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Convert the errors of the hub to one LoadError that says what to do."""
    errors = huggingface_hub.errors
    try:
        yield
    except LoadError:
        raise
    except errors.GatedRepoError as fault:
        raise LoadError(
            f"{repository} is gated: accept its terms on https://huggingface.co/{repository}, then run `hf auth login`"
        ) from fault
    except errors.RevisionNotFoundError as fault:
        raise LoadError(f"{repository} has no revision {revision}; name a branch, a tag or a commit of it") from fault
    except errors.RepositoryNotFoundError as fault:
        raise LoadError(
            f"{repository} is no local file or folder, and the hub has no model of this name that it shows to you; "
            "correct the name, or run `hf auth login` for a private one"
        ) from fault
    except Exception as fault:  # those of its HTTP client share no base class
        raise LoadError(
            f"{repository} is no local file or folder, not in the cache of the hub ({constants.HF_HUB_CACHE}), and "
            f"cannot be downloaded{because(fault)}; repeat it with a network, or name a local folder"
        ) from fault
