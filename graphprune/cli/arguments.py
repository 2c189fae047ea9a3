"""Arguments and options that commands share."""

from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated

import typer

from graphprune.errors import OptionError
from graphprune.statistics.data_files import QUESTIONS, TEXTS
from graphprune.workflows.source_options import MODEL, OFFLINE, REVISION

TARGETS = Path(__file__).parents[1] / "exporters" / "targets"

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that graphprune saved.", show_default=False)]
Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Folders that `prune` or `apply` wrote.", show_default=False)
]
PageFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write a page, too, with a plot of the frontier."),
]
NewPage = Annotated[Path, typer.Option("--output", "-o", help="The new page.", show_default=False)]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The new folder; it appears once it is complete.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output once the new one is complete.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
Length = Annotated[int, typer.Option(help="Tokens in a window.", min=2)]
Text = Annotated[str, typer.Option(metavar="TEXT", help=f"Text to predict: {TEXTS}.", show_default=False)]
Questions = Annotated[
    Path, typer.Option(help=f"A file of JSON lines: {QUESTIONS}; may end in .gz.", show_default=False)
]
Numbers = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Color the groups by a table that `graphprune sensitivity` wrote, or by JSON as in {"NAME": 0.5}.',
    ),
]
Sizes = Annotated[
    str | None,
    typer.Option(
        "--sizes", metavar="NAME=N,...", help="Sizes of dynamic dimensions, by name, at which an ONNX file runs."
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", metavar="REV", help=REVISION)]
Offline = Annotated[bool, typer.Option("--offline", help=OFFLINE)]
Dequantize = Annotated[
    bool, typer.Option("--dequantize", help="Take quantized weights of an ONNX file as floating-point numbers.")
]


def target_names() -> tuple[str, ...]:
    """Names of the targets of `export`, from the names of files, without importing the packages that they need."""
    return tuple(sorted(info.name.replace("_", "-") for info in iter_modules([str(TARGETS)])))


def sizes(words: str | None, flag: str) -> dict[str, int]:
    """Parse ``batch=1,sequence=128``, the value of a flag, as sizes by name.

    Raises:
        OptionError: if the text has another form.
    """
    pairs = [word.partition("=") for word in (words or "").split(",") if word]
    if not all(name and size.isdigit() for name, _, size in pairs):
        raise OptionError(f"{flag} {words!r} is not of the form batch=1,sequence=128")
    return {name.strip(): int(size) for name, _, size in pairs}
