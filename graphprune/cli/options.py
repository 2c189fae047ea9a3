"""The arguments and options that commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from graphprune.corpus import WHAT


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
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The new folder; it appears when all is done.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output once the new one is complete.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
Length = Annotated[int, typer.Option(help="Tokens in a window.", min=2)]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
Calibration = Annotated[str | None, typer.Option(metavar="TEXT", help=f"What the method looks at: {WHAT}.")]
Text = Annotated[str, typer.Option(metavar="TEXT", help=f"What to predict: {WHAT}.", show_default=False)]
