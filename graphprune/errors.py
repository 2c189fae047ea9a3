"""Every error that graphprune raises on purpose: what, where, got, expected, what to do."""

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches

#: So many names are listed in a message where none is near to the unknown one.
FEW = 16
#: The most letters of a library's own words in a message.
LONGEST = 240

_NOISE = re.compile(r"\x1b\[[0-9;]*m| at 0x[0-9a-fA-F]+")


class GraphpruneError(Exception):
    """The root: one clear message, meant for the user."""


class TraceError(GraphpruneError):
    """A module could not be captured as a graph."""


class LoadError(GraphpruneError):
    """A model, a plan or a text could not be read."""


class AnalysisError(GraphpruneError):
    """The inferred axes contradict each other: a rule is wrong."""


class PlanError(GraphpruneError):
    """A plan cannot be made, or does not fit the program."""


class OptionError(PlanError):
    """An option has a value that it cannot take, or does not exist."""


class InvalidProgram(GraphpruneError):  # noqa: N818 - the name of the state, as in compilers
    """A rewritten graph does not hold together."""


class CalibrationError(GraphpruneError):
    """The calibration data or what the model makes of it is unusable."""


class VerificationError(GraphpruneError):
    """Two models that must agree do not."""


class WriteBackError(GraphpruneError):
    """A plan cannot be expressed in the original module."""


class ExportError(GraphpruneError):
    """A model could not be saved or exported."""


class WorkspaceError(GraphpruneError):
    """What a run keeps while it works cannot be written, or belongs to another run."""


class PipelineError(GraphpruneError):
    """Passes stand in an order in which they cannot run, or their text cannot be read."""


class PackageError(GraphpruneError):
    """An optional package is missing, or fails while it is imported."""


class RegistryError(GraphpruneError):
    """A name is not registered, or registered twice."""


def reason_of(fault: BaseException) -> str:
    """The cause of an error in a few words: one line without escape codes, addresses or a final full stop."""
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
    """The cause of an error as an aside behind a sentence of ours, such as `` (reason: no space left on device)``."""
    return f" (reason: {reason_of(fault)})"


def misread(fault: BaseException) -> str:
    """The cause of an error while a file of ours is read, as `because` has it, without words of Python's about code."""
    ours = isinstance(fault, OSError | KeyError | UnicodeDecodeError | json.JSONDecodeError | GraphpruneError)
    return because(fault) if ours else " (reason: its content has another structure)"


def choices(name: object, known: Iterable[str], listed: str = "") -> str:
    """The end of a message about an unknown name: near names; else all of a few, or where the many are `listed`."""
    known = list(known)
    near = get_close_matches(str(name), known)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return listed if listed and len(known) > FEW else f"choose one of {', '.join(known)}"
