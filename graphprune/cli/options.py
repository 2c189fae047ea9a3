"""The arguments and options that commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from graphprune.errors import ExportError, PlanError
from graphprune.statistics.texts import FORMATS


class Destination(StrEnum):
    """What the pruned model must run in, which decides what may be cut."""

    stock = "stock"
    per_layer = "per-layer"
    free = "free"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face folder, a .gguf file, a .pt2 file, or package.module:callable that returns "
        "(module, args, kwargs).",
        show_default=False,
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that graphprune saved.", show_default=False)]
Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Folders that `prune` or `apply` wrote.", show_default=False)
]
PageFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write a page, too, with a plot of the frontier."),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The new folder; it appears when all is done.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output once the new one is complete.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
Length = Annotated[int, typer.Option(help="Tokens in a window.", min=2)]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
Calibration = Annotated[str | None, typer.Option(metavar="TEXT", help=f"What the method looks at: {FORMATS}.")]
Text = Annotated[str, typer.Option(metavar="TEXT", help=f"What to predict: {FORMATS}.", show_default=False)]
Protect = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Parameters that must stay as they are; repeatable.")
]
Method = Annotated[str, typer.Option(help="The method; see `graphprune recipes`.")]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Save the plan and cut nothing.")]
Sparsity = Annotated[float, typer.Option(help="The share of all parameters to remove.", show_default=False)]
Align = Annotated[int | None, typer.Option(help="Every new width is a multiple of this; 8 without a target.", min=1)]
Where = Annotated[
    Destination | None,
    typer.Option(
        help="Where it must run: stock transformers (the default without a target), its own code file, or any graph."
    ),
]
Target = Annotated[
    str | None, typer.Option(help="What it will be exported to, which sets destination and alignment: see export.")
]
Autocast = Annotated[
    bool,
    typer.Option("--autocast", help="Calibrate with matrices multiplied in bfloat16, faster where processors can."),
]
Inexact = Annotated[
    bool, typer.Option("--inexact", help="Cut hidden sizes under norms too, which changes what remains.")
]
Budget = Annotated[str, typer.Option(help="What the sparsity is a share of: parameters, macs, kv_cache or latency.")]
Latency = Annotated[
    str, typer.Option(metavar="FILE", help="Keep the measurements for a budget in latency in this table.")
]
Runtime = Annotated[str, typer.Option(help="Where latency is measured: onnxruntime, onnxruntime-cuda or torch.")]
Trials = Annotated[int, typer.Option(help="Trials of a recipe that searches.", min=1)]
Numbers = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Colour the groups by a table that `graphprune sensitivity` wrote, or by JSON as in {"NAME": 0.5}.',
    ),
]
Shots = Annotated[
    int | None, typer.Option(help="Plan in so many steps, each on the refitted outcome of the last.", min=1)
]
Coarse = Annotated[
    float | None, typer.Option(help="The share of what is to go that whole blocks give first (recipe comp).")
]
Device = Annotated[str, typer.Option(help="Where the calibration runs: cpu, or cuda.")]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Take no more memory than that, such as 4GiB.", show_default=False),
]
Scratch = Annotated[
    Path | None,
    typer.Option(help="A folder for what a run keeps while it works; beside the output without.", show_default=False),
]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew where an unfinished run could go on.")]
Sensitivity = Annotated[
    str, typer.Option(metavar="FILE", help="Divide what is to go by a table that `graphprune sensitivity` wrote.")
]
NewFile = Annotated[
    Path, typer.Option("--output", "-o", help="The new file; it appears when all is done.", show_default=False)
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw a picture, too, in the format that the ending names (.png).")
]
Ratios = Annotated[
    str, typer.Option(metavar="R,R,...", help="The shares of a group's indices to remove, one after the other.")
]
RefitBy = Annotated[
    str | None,
    typer.Option(help="What refits the maps that read the group; none for no refit. That of the recipe if left out."),
]
Evaluate = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Measure the perplexity on it before and after, for the report; repeatable."),
]
Windows = Annotated[int, typer.Option(help="How many windows of such a text are read.", min=1)]


def shares(words: str) -> tuple[float, ...]:
    """``0.1,0.5`` as numbers.

    Raises:
        PlanError: if it is written otherwise.
    """
    try:
        return tuple(float(word) for word in words.split(","))
    except ValueError as fault:
        raise PlanError(f"--ratios {words!r} is not of the form 0.1,0.25,0.5") from fault


def sizes(words: str | None) -> dict[str, int]:
    """``batch=1,sequence=128`` as sizes by name.

    Raises:
        ExportError: if it is written otherwise.
    """
    pairs = [word.partition("=") for word in (words or "").split(",") if word]
    if not all(name and size.isdigit() for name, _, size in pairs):
        raise ExportError(f"--static {words!r} is not of the form batch=1,sequence=128")
    return {name.strip(): int(size) for name, _, size in pairs}
