"""Upload of a saved model to the Hugging Face hub, once it is verified."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from yaml import YAMLError

from graphprune.errors import ExportError, OptionError, because
from graphprune.support.packages import huggingface_hub
from graphprune.version import __version__
from graphprune.workflows.saved_folder import verify_folder

log = logging.getLogger("graphprune.run")

CARD = "README.md"
EXCLUDED = (".*", "*/.*", "*.run/*", "*__pycache__/*", "*.lock")  # hidden files, and those of unfinished runs
TEXTS = (".json", ".yaml", ".md", ".html", ".txt")


@dataclass(frozen=True)
class Upload:
    """Uploaded model: its name and branch on the hub, the address of the commit, and the files."""

    repository: str
    branch: str
    url: str
    files: tuple[str, ...]
    bytes: int


def push_to_hub(
    folder: str | Path, repository: str, *, private: bool = False, revision: str | None = None
) -> Upload:  # fmt: skip
    """Upload a folder that graphprune wrote to a model repository of the hub, ``org/name``, which is made if necessary.

    The folder is verified first, and its card is validated by the hub. `private` makes a private repository, and
    refuses one that is public; `revision` is a branch, main by default, which is made if necessary. Hidden files and
    the workspaces of unfinished runs are not uploaded.

    Raises:
        ExportError: if there is no token, the card is not valid, or the hub refuses the upload.
        OptionError: if `repository` is no name of a repository.
        VerificationError: if something in the folder is missing, damaged, or no longer agrees.
    """
    _require_name(repository)
    _require_access()
    verified = verify_folder(folder)
    log.info("%s is verified: %s", folder, "; ".join(verified.checks))
    folder, branch = Path(folder), revision or constants.DEFAULT_REVISION
    files = _files(folder)
    _warn_of_folders(folder, files)
    with _hub_errors(repository):
        _validate_card(folder)
        api: Any = huggingface_hub.HfApi(library_name="graphprune", library_version=__version__)
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise ExportError(f"{repository} exists and is public; make it private on the hub, or omit private")
        if branch != constants.DEFAULT_REVISION:
            api.create_branch(repository, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=branch, ignore_patterns=list(EXCLUDED),
            commit_message=f"Upload by graphprune {__version__}",
        )  # fmt: skip
    size = sum((folder / name).stat().st_size for name in files)
    return Upload(repository, branch, str(commit.commit_url), files, size)


def _require_name(repository: str) -> None:
    try:
        if repository.count("/") != 1:
            raise ValueError("it has no organization or user")
        huggingface_hub.utils.validate_repo_id(repository)  # type: ignore[attr-defined]
    except ValueError as fault:
        raise OptionError(f"{repository!r} is no name of a repository, as org/name{because(fault)}") from fault


def _require_access() -> None:
    """Require a network and a token, before any work."""
    if constants.HF_HUB_OFFLINE:
        raise ExportError("nothing is uploaded offline; unset HF_HUB_OFFLINE")
    if huggingface_hub.get_token() is None:
        raise ExportError("there is no token of the hub; run `hf auth login`, or set HF_TOKEN to one that may write")


def _files(folder: Path) -> tuple[str, ...]:
    """Files that are uploaded."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(name for name in names if not any(fnmatch(name, pattern) for pattern in EXCLUDED))


def _warn_of_folders(folder: Path, files: tuple[str, ...]) -> None:
    """Warn of files that name folders of this machine."""
    own = {str(path) for path in (Path.home(), folder.resolve().parent)} - {"/"}
    texts = [name for name in files if name.endswith(TEXTS)]
    named = [name for name in texts if any(path in (folder / name).read_text(errors="replace") for path in own)]
    if named:
        log.warning("%s name folders of this machine, and are uploaded as they are", ", ".join(named))


def _validate_card(folder: Path) -> None:
    """Have the card checked by the hub.

    Raises:
        ExportError: if there is none, or it is not valid.
    """
    if not (folder / CARD).is_file():
        raise ExportError(
            f"{folder} has no card, {CARD}; write one, with the license and base_model in its front matter"
        )
    try:
        huggingface_hub.ModelCard.load(folder / CARD).validate()
    except (ValueError, YAMLError) as fault:
        raise ExportError(
            f"the hub does not accept {folder / CARD}{because(fault)}; correct its front matter"
        ) from fault


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Convert the errors of the hub to one ExportError."""
    try:
        yield
    except ExportError:
        raise
    except Exception as fault:  # those of its HTTP client share no base class
        raise ExportError(
            f"the hub refuses {repository}{because(fault)}; see that the token (`hf auth whoami`) may write "
            "there, and repeat the command"
        ) from fault
