"""Options of a run, each written once: its name, type, default and help text.

The signatures of `graphprune.prune`, `plan` and `sensitivity`, the command line, ``run.yaml``, the report, the identity
of a resumed run and the table of the documentation are made from these fields. This file imports no torch, so that help
texts are shown at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PathLike = str | Path


def option(default: Any, help: str, *, metavar: str = "", least: int | None = None, outcome: bool = True) -> Any:
    """A field of an options class.

    Args:
        default: The value where the user gives none.
        help: The help text of the command line and of the documentation.
        metavar: What the command line calls the value, such as ``FILE``.
        least: The smallest number allowed.
        outcome: Whether the pruned model depends on it; an unfinished run continues only where such options agree.
    """
    metadata = {"help": help, "metavar": metavar, "least": least, "outcome": outcome}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Target:
    """How much to remove, by which recipe, and where the pruned model must run."""

    recipe: str = option("fasp", "The method; see `graphprune recipes`.", metavar="RECIPE")
    sparsity: float | None = option(None, "The share of all parameters (or of --budget) to remove.", metavar="SHARE")
    ratio: float | None = option(None, "The share of every group to remove.", metavar="SHARE")
    budget: str = option("parameters", "What the sparsity is a share of: parameters, macs, kv_cache or latency.")
    target: str | None = option(
        None, "The runtime of a later export; it sets destination and alignment. See `graphprune export --help`."
    )
    destination: str | None = option(
        None,
        "Where the model must run: stock (transformers, the default), per-layer (its own code file) or free (graph).",
    )
    align: int | None = option(None, "Every new width is a multiple of this number; 8 without a target.", least=1)
    protect: tuple[str, ...] = option((), "Parameters that keep all indices; repeatable.", metavar="GLOB")
    exact_only: bool = option(True, "Leave hidden sizes under norms alone; cutting them changes what remains.")
    shots: int | None = option(
        None, "Prune in so many rounds, each planned on the refitted outcome of the last.", least=1
    )
    coarse: float | None = option(
        None, "The share of the budget that whole blocks give before groups are cut (recipe comp)."
    )
    sensitivity: PathLike = option("", "Allocate by a table that `graphprune sensitivity` wrote.", metavar="FILE")
    trials: int = option(24, "Trials of a recipe that searches.", least=1)
    latency: PathLike = option("", "Keep the measurements of a latency budget in this table.", metavar="FILE")
    runtime: str = option("onnxruntime", "Where latency is measured: onnxruntime, onnxruntime-cuda or torch.")
    seed: int = option(0, "Seed of everything random.", least=0)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the model is calibrated and evaluated on."""

    calibration: PathLike | None = option(None, "Calibration text.", metavar="TEXT")
    samples: int = option(128, "Windows of the calibration text.", least=1)
    length: int = option(512, "Tokens in a window.", least=2)
    autocast: bool = option(False, "Calibrate with matrices multiplied in bfloat16, faster where processors can.")
    batches: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] = option(
        (), "Batches of (args, kwargs) in the place of a text; from Python only."
    )
    loss: Callable[..., Any] | None = option(
        None, "A function of the outputs and the number of the batch; from Python only."
    )
    evaluate: tuple[PathLike, ...] = option(
        (), "Measure the perplexity on this text before and after; repeatable.", metavar="TEXT"
    )
    windows: int = option(64, "Windows of each such text.", least=1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How the run works, and where it keeps its files."""

    plan_only: bool = option(False, "Save the plan and cut nothing.")
    device: str = option("cpu", "Where the calibration runs: cpu or cuda.")
    memory: str | None = option(None, "Take no more memory than this, such as 4GiB.", metavar="SIZE")
    scratch: PathLike | None = option(
        None, "A folder for the files of an unfinished run; beside the output by default.", metavar="DIR", outcome=False
    )
    restart: bool = option(False, "Begin anew where an unfinished run could continue.", outcome=False)
    force: bool = option(False, "Replace an existing output once the new one is complete.", outcome=False)


@dataclass(frozen=True, kw_only=True)
class PruneOptions(Target, Data, Run):
    """Options of `graphprune.prune`."""

    model: PathLike = field(kw_only=False)
    output: PathLike


def takes(options: Callable[P, Any]) -> Callable[[Callable[[Any], R]], Callable[P, R]]:
    """Give a function of an options object the flat keywords of its fields.

    Type checkers and editors see the fields as parameters, with their types.
    """

    def wrap(function: Callable[[Any], R]) -> Callable[P, R]:
        @wraps(function)
        def flat(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(options(*args, **kwargs))

        return flat

    return wrap


def described(options: Any) -> dict[str, "Field[Any]"]:
    """The fields of an options class or object, by name."""
    return {one.name: one for one in fields(options)}
