"""Options of a run: each has its name, type, default and help text in one place.

The signatures of `graphprune.prune`, `plan` and `sensitivity`, the command line, ``run.yaml``, the report, the identity
of a resumed run and the table of the documentation are made from these fields. This file imports no torch, so that help
texts are shown at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from graphprune.errors import OptionError
from graphprune.statistics.data_files import CALIBRATION, TEXTS
from graphprune.workflows.goals.goal_options import GoalOptions
from graphprune.workflows.option_fields import OptionGroup, option, required
from graphprune.workflows.source_options import MODEL, AdapterFolder, HubSource, OnnxFile, PathLike

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from graphprune.ir.program import Program

#: Shares of a whole, of which a run has one, and the whole.
SHARES = {"sparsity": "parameters", "macs": "multiply-accumulates", "latency": "latency"}
#: Options of which a run requires one.
AMOUNTS = (*SHARES, "ratio", "widths", "drop", "drop_experts", "drop_blocks", "goal", "pipeline")
Globs = tuple[str, ...] | list[str]
Texts = tuple[PathLike, ...] | list[str] | list[Path]
Batches = Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
Loss = Callable[..., Any]
OfBatch = Callable[[Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Scope(OptionGroup):
    """Options for the method, and for the parts of a model that may be cut."""

    title: ClassVar[str] = "What to remove"
    recipe: str = option("fasp", "The method; see `graphprune recipes`.")
    destination: str | None = option(
        None,
        "Where the model must run: stock (transformers, the default of its models without a target), per-layer (its "
        "own code file) or free (any graph).",
        choices=("stock", "per-layer", "free"),
    )
    protect: Globs = option(
        (),
        "Parameters, dimensions of parameters (as in fc.weight:0), modules, groups or kinds of groups that keep all "
        "indices.",
        metavar="GLOB",
    )
    exact_only: bool = option(
        True,
        "Do not cut hidden sizes under norms, which would change the values that remain.",
        flags="--exact-only/--inexact",
    )


@dataclass(frozen=True, kw_only=True)
class Planning(OptionGroup):
    """Options of planning."""

    title: ClassVar[str] = "What to remove"
    target: str | None = option(
        None, "The runtime of a later export, which sets destination and alignment; see `graphprune export`."
    )
    align: int | None = option(None, "Every new width is a multiple of this number; 8 without a target.", least=1)
    shots: int | None = option(
        None, "Prune in so many rounds, each planned on the refitted model of the last.", least=1
    )
    coarse: float | None = option(
        None, "The share of the reduction made by dropping blocks before groups are cut (recipe comp)."
    )
    pipeline: str = option("", "Passes instead of a recipe, such as 'analyze | score | ...'.", metavar="TEXT")
    score: str = option("", "A score of groups that replaces that of the recipe.", metavar="NAME")
    allocation: str = option(
        "", "A method to divide the reduction among groups that replaces that of the recipe.", metavar="NAME"
    )
    refit: str = option(
        "", "A refit of the remaining weights that replaces that of the recipe, or none.", metavar="NAME"
    )
    rounding: str = option(
        "none",
        "Round the weights to the blocks of a later 4-bit export, errors compensated: int4 for ONNX, q4_0 for GGUF.",
        choices=("none", "int4", "q4_0"),
    )
    sensitivity: PathLike = option("", "Allocate by a table that `graphprune sensitivity` wrote.", metavar="FILE")
    trials: int = option(24, "Trials of a recipe that searches.", least=1)
    latency_table: PathLike = option("", "Store the measurements of a latency budget in this table.", metavar="FILE")
    runtime: str = option("onnxruntime", "Where latency is measured: onnxruntime, onnxruntime-cuda or torch.")


@dataclass(frozen=True, kw_only=True)
class Target(Scope, Planning):
    """Options for how much to remove, by which recipe, and where the pruned model must run."""

    title: ClassVar[str] = "What to remove"
    sparsity: float | None = option(
        None,
        "The share of all parameters, or of another budget, to remove.",
        share=True,
    )
    macs: float | None = option(
        None, "The share of all multiply-accumulates to remove; short for a sparsity of budget macs.", share=True
    )
    latency: float | PathLike | None = option(
        None,
        "The share of the latency to remove; short for a sparsity of budget latency. A path is taken as the "
        "latency table.",
        metavar="SHARE",
        share=True,
    )
    ratio: float | Mapping[str, float] | None = option(
        None,
        "The share of every group to remove, or shares by name; the first name that matches a group counts.",
        metavar="SHARE|NAME=SHARE,...",
        share=True,
    )
    widths: Mapping[str, int] | None = option(
        None,
        "Exact numbers of indices to retain, by kind of group (neurons, heads), group, module or parameter.",
        metavar="NAME=N,...",
        least=1,
    )
    drop: Mapping[str, Sequence[int]] | None = option(
        None, "The very indices to remove, by name.", metavar="NAME=I,I,...", least=0
    )
    drop_experts: PathLike = option(
        "", 'The very experts to remove: a JSON file of their numbers by layer, as in {"3": [1, 5]}.', metavar="FILE"
    )
    drop_blocks: Sequence[int | str] = option(
        (), "The very blocks to drop, by number in their list or by name.", metavar="N,N,...", least=0
    )
    budget: str = option("parameters", "What the sparsity is a share of: parameters, macs, kv_cache or latency.")
    follow: bool = option(
        False,
        "Cut only what the module in memory can have narrower: kinds of groups that a write-back would pad with zeros "
        "keep all indices, and the budget is spent on the others.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.latency, str):
            self._set(latency=None, latency_table=self.latency or self.latency_table)
        shares = [name for name in SHARES if getattr(self, name) is not None]
        if len(shares) > 1:
            raise OptionError(f"give one of {', '.join(SHARES)}, got {' and '.join(shares)}: a run has one budget")
        if shares and self.ratio is not None:
            what = SHARES[shares[0]]
            raise OptionError(f"give either {shares[0]} (a share of all {what}) or ratio (a share of every free group)")
        for name in shares:
            if name != "sparsity" and self.budget not in ("parameters", name):
                raise OptionError(f"{name} is a share of the {SHARES[name]}, and the budget is {self.budget}; omit one")
            if name != "sparsity":
                self._set(sparsity=getattr(self, name), budget=name, **{name: None})

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def names_groups(self) -> bool:
        """Whether it names groups to cut, which only recipes that cut groups can follow."""
        return bool(self.widths or self.drop or self.drop_experts or isinstance(self.ratio, Mapping))

    def has_amount(self, apart_from: str = "") -> bool:
        """Whether it has an amount to remove, apart from one option; a pipeline may set one itself."""
        return any(getattr(self, name, None) not in (None, "", (), {}) for name in AMOUNTS if name != apart_from)


@dataclass(frozen=True, kw_only=True)
class Samples(OptionGroup):
    """Options for drawing and running data."""

    title: ClassVar[str] = "Data"
    samples: int = option(128, "Windows of the calibration text.", least=1)
    length: int = option(512, "Tokens in a window.", least=2)
    seed: int = option(0, "Seed of everything random.", least=0)
    batches: Batches = option((), "Batches of (args, kwargs) instead of a text; from Python only.", python=True)
    loss: Loss | None = option(
        None, "A function of the outputs and the number of the batch; from Python only.", python=True
    )


@dataclass(frozen=True, kw_only=True)
class Data(Samples):
    """Options of the calibration."""

    calibration: PathLike | None = option(None, f"Calibration text: {CALIBRATION}.", metavar="TEXT")
    autocast: bool = option(False, "Calibrate with matrices multiplied in bfloat16, faster where processors can.")


@dataclass(frozen=True, kw_only=True)
class UserObjects(OptionGroup):
    """Options for a user's own data, loss and metric: objects in Python, names on the command line."""

    title: ClassVar[str] = "Your own data"
    data: Any = option(
        None,
        "Batches for scores and refits: any iterable of tensors, tuples (inputs, labels) or dicts, such as a "
        "DataLoader, or a function that returns one; or an .npz file of arrays by the names of the inputs.",
        metavar="NAME",
        named=True,
        suffix=".npz",
        thing="an iterable of batches",
    )
    loss: Loss | str | None = option(
        None,
        "A function of the output and the batch (of batches=, its number) that returns a scalar, for gradients.",
        metavar="NAME",
        named=True,
    )
    metric: OfBatch | str | None = option(
        None, "A function of the output and the batch, whose mean is measured before and after.", metavar="NAME",
        named=True,
    )  # fmt: skip
    test: Any = option(
        None,
        "Batches for the metric; the data by default.",
        metavar="NAME",
        named=True,
        suffix=".npz",
        thing="an iterable of batches",
    )
    forward: OfBatch | str | None = option(
        None,
        "A function of the model and a batch that calls the model, where its signature does not show how.",
        metavar="NAME",
        named=True,
    )
    data_samples: int = option(512, "Samples of the data that scores and refits use.", least=1)


@dataclass(frozen=True, kw_only=True)
class InMemory(OptionGroup):
    """Options for a module in memory."""

    title: ClassVar[str] = "A module in memory"
    inplace: bool = option(True, "Prune the module itself, not a copy.", python=True)
    optimizer: "Optimizer | Sequence[Optimizer]" = option(
        (), "The optimizer of the module, or several, which follow with their state.", python=True
    )
    average: "Module | None" = option(None, "An averaged copy of the module, which follows.", python=True)


@dataclass(frozen=True, kw_only=True)
class Run(OptionGroup):
    """Options of the run itself: evaluation, device and memory."""

    title: ClassVar[str] = "The run"
    evaluate: Texts = option((), "Measure the perplexity on this text before and after.", metavar="TEXT")
    windows: int = option(64, "Windows of each such text.", least=1)
    plan_only: bool = option(False, "Save the plan without cutting the model.")
    device: str = option("cpu", "Where the calibration runs: cpu or cuda.")
    memory: str | None = option(None, "Take no more memory than this, such as 4GiB.", metavar="SIZE")


@dataclass(frozen=True, kw_only=True)
class RunFiles(OptionGroup):
    """Options for the files of a run."""

    title: ClassVar[str] = "The run"
    scratch: PathLike | None = option(
        None,
        "A folder for the files of an unfinished run; next to the output by default.",
        metavar="DIR",
        outcome=False,
    )
    restart: bool = option(
        False, "Start over where an unfinished run could continue.", flags="--restart", outcome=False
    )
    force: bool = option(
        False, "Replace an existing output once the new one is complete.", flags="--force", outcome=False
    )


@dataclass(frozen=True, kw_only=True)
class TrimFirst(OptionGroup):
    """Options for trimming the vocabulary before a model is pruned."""

    title: ClassVar[str] = "What to remove"
    trim: Texts = option(
        (), "First remove the tokens that this corpus does not need; the budget counts them.", metavar="TEXT"
    )
    trim_tokens: int | None = option(None, "How many tokens to retain; see `graphprune trim`.", least=1)
    trim_coverage: float | None = option(None, "The share of the corpus's tokens that remain whole.", share=True)


@dataclass(frozen=True, kw_only=True)
class PruneOptions(
    Target, GoalOptions, TrimFirst, UserObjects, Data, OnnxFile, HubSource, AdapterFolder, InMemory, Run, RunFiles
):
    """Options of `graphprune.prune`."""

    model: "Module | Program | PathLike" = field(
        kw_only=False, metadata=required(f"{MODEL} From Python also a module, or a program.", metavar="MODEL")
    )
    args: Any = field(
        kw_only=False,
        default=(),
        metadata=required("Example arguments of a module; by default those of the first batch.", python=True),
    )
    kwargs: Mapping[str, Any] | None = field(
        kw_only=False,
        default=None,
        metadata=required("Example keywords of a module; by default those of the first batch.", python=True),
    )
    recipe: str = option("", "The method; see `graphprune recipes`. By default fasp, for data and modules auto.")
    output: PathLike | None = option(
        None, "The new folder; it appears when all is done. Required for a model that is no module in memory.",
        metavar="DIR", flags="--output -o",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.recipe:
            own = self.data is not None or self.labelled is not None or not isinstance(self.model, str)
            object.__setattr__(self, "recipe", "auto" if own else "fasp")
        if self.data is not None and (self.batches or self.calibration):
            raise OptionError(f"give either data or {'batches' if self.batches else 'a calibration text'}")
        for name in ("metric", "forward", "test"):
            if self.data is None and self.labelled is None and getattr(self, name) is not None:
                raise OptionError(f"{name} is for data: give data, an iterable of batches")
        self._require_goals()

    def _require_goals(self) -> None:
        """Refuse goals together with an amount to remove, and without the data that confirms them."""
        if self.goal and self.has_amount(apart_from="goal"):
            raise OptionError("give either a goal or an amount to remove: the goal chooses the amount")
        if self.frontier and not self.goal and self.sparsity is None:
            raise OptionError("the frontier comes with the model at a goal or a share; give goal or sparsity, too")
        if self.searches and self.plan_only:
            raise OptionError("goals and frontiers are measured on cut models; omit plan_only")
        self.require_data_for_goals(self.metric is not None, self.data is not None)


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Target, Data):
    """Options of `graphprune.plan`."""

    program: "Program" = field(
        kw_only=False, metadata=required("The model, as `load` or `trace` returns it.", python=True)
    )
    recipe: str = option("magnitude", "The method; see `graphprune recipes`.")
    destination: str | None = option(
        None,
        "Where the model must run: free (any graph, the default without a target), stock (transformers) or per-layer "
        "(its own code file).",
        choices=("stock", "per-layer", "free"),
    )
    align: int | None = option(None, "Every new width is a multiple of this number; 1 without a target.", least=1)


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions(Scope, Samples, HubSource):
    """Options of `graphprune.sensitivity`."""

    model: "Program | PathLike" = field(kw_only=False, metadata=required(MODEL, metavar="MODEL"))
    text: PathLike = option("", f"Text to measure the loss on: {TEXTS}.", metavar="TEXT")
    output: PathLike | None = option(
        None, "The new file; it appears when all is done.", metavar="FILE", flags="--output -o", outcome=False
    )
    plot: PathLike | None = option(
        None, "Draw a picture, too, in the format that the ending names (.png).", metavar="FILE", outcome=False
    )
    ratios: Sequence[float] = option(
        (0.1, 0.25, 0.5, 0.75), "The shares of a group's indices to remove, one after the other.", metavar="R,R,..."
    )
    refit: str | None = option(
        None,
        "The refit of the linear layers that read the group, or none; that of the recipe by default, least squares "
        "where it has none or adds biases.",
    )
    destination: str = option(
        "free",
        "Where the model must run: stock (transformers), per-layer (its own code file) or free (any graph).",
        choices=("stock", "per-layer", "free"),
    )
    samples: int = option(64, "Windows of the text; the loss is measured on one of eight.", least=2)
    length: int = option(256, "Tokens in a window.", least=2)
    force: bool = option(
        False, "Replace an existing output once the new one is complete.", flags="--force", outcome=False
    )
