"""Contract of exporters: options, reports, and the record of a target."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from graphprune.errors import ExportError


@dataclass
class ExportReport:
    """Report of an export: files, and facts about the model and the checks."""

    target: str
    output: Path
    files: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export; each target supports some of them and refuses the others with `require`.

    `dtype` is ``fp32`` or ``fp16``, `quant` the kind of stored weights: ``none``, ``int8`` or ``int4``. `static` has
    sizes by dimension: ``batch``, ``sequence``, ``past`` of a cache, and ``written`` for tokens of the
    decoder of an encoder-decoder; or the names of dimensions in an ONNX file.
    `portable` selects the variant that most readers accept, at a cost that each target describes.
    """

    dtype: str | None = None
    quant: str = "none"
    opset: int | None = None
    static: Mapping[str, int] = field(default_factory=dict)
    portable: bool = False

    def require(self, target: str, **takes: Collection[object]) -> None:
        """Refuse options that a target does not support: `takes` has the supported values of each option.

        Raises:
            ExportError: if another option is set, or one has another value.
        """
        for one in fields(self):
            value, allowed = getattr(self, one.name), takes.get(one.name, ())
            if value == ExportOptions.__dataclass_fields__[one.name].default or not value:
                continue
            if isinstance(value, Mapping) and allowed:  # names are those of the model, which checks them
                continue
            if value not in allowed:
                supported = (
                    ", ".join(f"{name} ({', '.join(map(str, of))})" for name, of in takes.items()) or "no options"
                )
                raise ExportError(f"target {target} cannot be made with {one.name} {value}; it takes {supported}")


NO_OPTIONS = ExportOptions()


@dataclass
class FolderVerification:
    """Contents of a saved or exported folder, and the checks that it passed."""

    folder: Path
    kind: str  # "huggingface", "pt2", "onnx" or another target
    parameters: int
    checks: list[str] = field(default_factory=list)
    max_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**vars(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class Needs:
    """Requirements of a target on a model before it is pruned.

    Args:
        destinations: Where the model may run (stock, per-layer or free); the first is the default.
        products: Number whose multiples widths of matrix products should be.
        convolutions: Number whose multiples widths of convolutions should be.
        why: Reason for these numbers, in words.
        graphs: Whether destination free gives the target the graph itself, in which a decoder has no cache, and not
            its ONNX files.
    """

    destinations: tuple[str, ...] = ("stock", "per-layer")
    products: int = 8
    convolutions: int = 8
    why: str = ""
    graphs: bool = False


class Exporter(Protocol):
    """Writes a saved model for a target; verified before it gets its final name."""

    def __call__(
        self, source: Path, output: Path, options: ExportOptions = ..., *, force: bool = ...
    ) -> ExportReport: ...


@dataclass(frozen=True)
class ExportTarget:
    """A runtime or format that a saved model can be written for.

    Args:
        export: Function that writes a saved model.
        needs: Requirements of the target on a model before it is pruned.
        verify: Function that repeats the check of a folder, given its report. Without it, a folder is verified as the
            ONNX model or Hugging Face model in it.
        check: Function that checks the files of such a folder in addition to its model, and returns the passed checks.
    """

    export: Exporter
    needs: Needs = Needs()
    verify: Callable[[Path, Mapping[str, Any]], FolderVerification] | None = None
    check: Callable[[Path], list[str]] | None = None
