"""Errors of graphprune, and helpers for their messages: what, where, got, expected, what to do."""

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from os import PathLike
from typing import TypeVar

T = TypeVar("T")

#: Maximum number of names that a message lists where none is close to the unknown one.
FEW = 16
#: Maximum length of a library's own text in a message.
LONGEST = 240

_NOISE = re.compile(r"\x1b\[[0-9;]*m| at 0x[0-9a-fA-F]+")


class GraphpruneError(Exception):
    """Base class: one clear message for the user."""


class TraceError(GraphpruneError):
    """A module could not be captured as a graph."""


class LoadError(GraphpruneError):
    """A model, a plan or a text could not be read."""


class InputError(GraphpruneError, RuntimeError):
    """A program is run on inputs for which its capture does not hold."""


class AnalysisError(GraphpruneError):
    """The inferred axes contradict each other: a rule is wrong."""


class PlanError(GraphpruneError):
    """A plan cannot be made, or does not fit the program."""


class OptionError(PlanError):
    """An option has a value that it cannot take, or does not exist."""


class InvalidProgram(GraphpruneError):  # noqa: N818 - the name of the state, as in compilers
    """A rewritten graph does not hold together."""


class CalibrationError(GraphpruneError):
    """The calibration data, or the outputs of the model on them, are unusable."""


class VerificationError(GraphpruneError):
    """Two models that must agree do not."""


class WriteBackError(GraphpruneError):
    """A plan cannot be expressed in the original module."""


class ExportError(GraphpruneError):
    """A model could not be saved or exported."""


class WorkspaceError(GraphpruneError):
    """The workspace of a run cannot be written, or belongs to another run."""


class PipelineError(GraphpruneError):
    """Passes are in an order in which they cannot run, or their text cannot be read."""


class PackageError(GraphpruneError):
    """An optional package is missing, or fails while it is imported."""


class TrainingError(GraphpruneError):
    """A training loop and its pruner do not fit together."""


class RegistryError(GraphpruneError):
    """A name is not registered, or registered twice."""


def reason_of(fault: BaseException) -> str:
    """Cause of an error in a few words: one line without escape codes, addresses or a final full stop."""
    if isinstance(fault, json.JSONDecodeError):
        return f"not JSON from line {fault.lineno}, column {fault.colno} on"
    if isinstance(fault, UnicodeDecodeError):
        return f"byte {fault.start} is not {fault.encoding.upper()}"
    if isinstance(fault, KeyError) and fault.args and isinstance(fault.args[0], str):
        return f"there is no entry {fault.args[0]!r}"
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror[:1].lower() + fault.strerror[1:]
    lines = [line.strip() for line in _NOISE.sub("", str(fault)).splitlines() if line.strip()]
    line = lines[0].rstrip(".:") if lines else type(fault).__name__
    return line if isinstance(fault, GraphpruneError) or len(line) <= LONGEST else f"{line[:LONGEST]}..."


def because(fault: BaseException) -> str:
    """Cause of an error for the end of a sentence, such as `` (reason: no space left on device)``."""
    return f" (reason: {reason_of(fault)})"


def misread(fault: BaseException) -> str:
    """Cause of an error while a file of graphprune is read, as `because` has it, without Python's words about code."""
    ours = isinstance(fault, OSError | KeyError | UnicodeDecodeError | json.JSONDecodeError | GraphpruneError)
    return because(fault) if ours else " (reason: its content has another structure)"


def choices(name: object, known: Iterable[str], listed: str = "") -> str:
    """End of a message about an unknown name: close names, else all names, or the place where many are `listed`."""
    known = list(known)
    near = get_close_matches(str(name), known)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return listed if listed and len(known) > FEW else f"choose one of {', '.join(known)}"


def require_type(name: str, value: object, kind: type[T], advice: str) -> T:
    """Return an argument of a function that takes objects of one type, and no names or files in their place.

    Args:
        name: The name of the argument.
        value: The value to check.
        kind: The type it must have.
        advice: How to make such a value of something else.

    Raises:
        OptionError: if it has another type.
    """
    if isinstance(value, kind):
        return value
    shown = repr(value) if isinstance(value, str | PathLike) else type(value).__name__
    raise OptionError(f"{name} must be a {kind.__name__}, got {shown}; {advice}")


def require_path(name: str, value: object, advice: str) -> str | PathLike[str]:
    """Return a path or another name of files, where an object of Python would be converted to its text.

    Raises:
        OptionError: if it is neither a text nor a path.
    """
    if isinstance(value, str | PathLike):
        return value
    raise OptionError(f"{name} must be a path or a name, got {type(value).__name__}; {advice}")


def require_paths(name: str, values: object) -> None:
    """Refuse a single path in the place of several, whose characters would be taken for paths.

    Raises:
        OptionError: if it is one.
    """
    if isinstance(values, str | PathLike):
        raise OptionError(f"{name} must be a sequence: write {name}=({json.dumps(str(values))},)")
