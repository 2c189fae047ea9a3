"""Export decoders as GGUF files for llama.cpp."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphprune.errors import ExportError, PackageError
from graphprune.exporters.checks import parity
from graphprune.exporters.contract import (
    NO_OPTIONS,
    ExportOptions,
    ExportReport,
    ExportTarget,
    FolderVerification,
    Needs,
)
from graphprune.exporters.export_folders.export_report import require_size, source_of, write_report
from graphprune.exporters.gguf_tools import gguf_runtime
from graphprune.exporters.gguf_tools.gguf_file import MODEL, check, count_finite, is_quantized, write
from graphprune.exporters.gguf_tools.gguf_model import GgufModel, describe
from graphprune.exporters.gguf_tools.gguf_vocabulary import vocabulary
from graphprune.exporters.model_folders.folder_files import copy_license, require_output
from graphprune.huggingface import model_folder
from graphprune.huggingface.card_facts import card_facts
from graphprune.support.atomic_output import new_folder
from graphprune.support.packages import gguf

_TAKES: dict[str, Collection[object]] = {"dtype": ("fp32", "fp16"), "quant": ("int8", "int4")}


@dataclass(frozen=True)
class _Subject:
    """Model, and the tensors and fields of its file."""

    source: Path
    model: Any
    described: GgufModel
    fields: Mapping[str, Any]
    notes: list[str]


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the decoder of a Hugging Face folder, with its tokenizer in the same file.

    Layers of different widths become architecture ``deci``. Every number is read back; where llama-cpp-python is
    installed, llama.cpp itself runs the file, and its outputs must agree with the model.

    Raises:
        ExportError: if llama.cpp does not compute this model, the file does not agree with it, or `output` may not be
            written.
    """
    options.require("gguf", **_TAKES)
    require_output(source, output, force)
    start = time.perf_counter()
    subject = _subject(source)
    with new_folder(output, force) as folder:
        path = folder / MODEL
        write(path, subject.described, {**subject.fields, **_general(source)}, options)
        written = time.perf_counter()
        checks, notes = _checked(path, subject, options)
        seconds = {"export": written - start, "check": time.perf_counter() - written}
        table = {**_facts(path, subject), **checks, "notes": notes, "seconds": seconds}
        copy_license(source, folder)
        report = write_report(folder, source, "gguf", options, table, checks["parity"])
    return replace(report, output=output)


def _subject(source: Path) -> _Subject:
    model = model_folder.module(source)
    described = describe(model)
    fields, notes = vocabulary(source, int(model.config.vocab_size))
    return _Subject(source, model, described, fields, [*described.notes, *notes])


def _general(source: Path) -> dict[str, Any]:
    """Fields that catalogs of models show: name, license and base model of the source."""
    keys, facts = gguf.Keys.General, card_facts(source)
    fields: dict[str, Any] = {keys.NAME: source.resolve().name}
    if facts.licence:
        fields[keys.LICENSE] = facts.licence
    if facts.base_model:
        url = f"https://huggingface.co/{facts.base_model}"
        fields |= {
            keys.BASE_MODEL_COUNT: 1, keys.BASE_MODEL_NAME.format(id=0): facts.base_model.split("/")[-1],
            keys.BASE_MODEL_REPO_URL.format(id=0): url,
        }  # fmt: skip
    return fields


def _facts(path: Path, subject: _Subject) -> dict[str, Any]:
    keys = gguf.Keys.Tokenizer
    return {
        "architecture": subject.described.architecture,
        "tokenizer": {"kind": subject.fields[keys.MODEL], "split": subject.fields.get(keys.PRE)},
        "parameters": sum(tensor.numel() for tensor in subject.model.parameters()),
        "bytes": path.stat().st_size,
    }


def _checked(path: Path, subject: _Subject, options: ExportOptions) -> tuple[dict[str, Any], list[str]]:
    """Read the file back and run it; return the results and notes."""
    checks = check(path, subject.described, subject.fields, options)
    notes = [*subject.notes, *_unquantized(subject.described, options)]
    try:
        runtime = gguf_runtime.open_file(path, min(subject.described.context, gguf_runtime.MAX_TOKENS))
    except PackageError as fault:
        notes.append(f"llama.cpp did not run it: {fault}")
        return {**checks, "parity": {}}, notes
    ran = _run(subject, runtime, options)
    kind = subject.fields[gguf.Keys.Tokenizer.MODEL]
    if kind != "none":
        ran["texts_cut_alike"], more = gguf_runtime.compare_tokenizers(subject.source, runtime, kind == "llama")
        notes += more
    return {**checks, "parity": {"llama.cpp": ran}}, notes


def _run(subject: _Subject, runtime: gguf_runtime.Runtime, options: ExportOptions) -> dict[str, Any]:
    """Compare llama.cpp with the model: number by number, or by divergence where weights are quantized."""
    described, model = subject.described, subject.model
    if options.quant != "none":
        divergence = gguf_runtime.divergence_of(model, runtime, options.quant, described.context)
        return {**divergence, "greedy": gguf_runtime.compare_greedy(gguf_runtime.subject_of(model), runtime)}
    reference = gguf_runtime.reference_of(model, options.dtype or "fp32", described.tabulated)
    agreement = parity.check(reference.subject, runtime, reference.bound).to_dict()
    if reference.half_precision_error is not None:
        agreement["half_precision_itself"] = reference.half_precision_error
    return {**agreement, "greedy": gguf_runtime.compare_greedy(reference.subject, runtime)}


def _unquantized(described: GgufModel, options: ExportOptions) -> list[str]:
    if options.quant == "none":
        return []
    matrices = {name: tuple(tensor.shape) for name, tensor in described.tensors.items() if tensor.dim() > 1}
    unquantized = [shape[-1] for name, shape in matrices.items() if not is_quantized(name, shape, options)]
    notes = ["the table of embeddings and the head keep 8 bits"] if options.quant == "int4" else []
    if unquantized:
        widths = ", ".join(map(str, sorted(set(unquantized))))
        notes.append(
            f"{len(unquantized)} of {len(matrices)} matrices keep {options.dtype or 'fp16'}: their rows of {widths} "
            "are no multiple of 32; prune to multiples of 32"
        )
    return notes


def verify(folder: Path, report: Mapping[str, Any]) -> FolderVerification:
    """Repeat the check of an export; without its source, check only that the file is whole.

    Raises:
        VerificationError: if its file has another size.
        ExportError: if the file no longer agrees with its source.
    """
    path = folder / MODEL
    if not path.is_file():
        raise ExportError(f"{folder} has no {MODEL}; export it again")
    require_size(f"{path} has", path.stat().st_size, report)
    count_finite(path)
    made = FolderVerification(
        folder, "gguf", int(report.get("parameters", 0)), ["it opens, all its weights are numbers"]
    )
    source = source_of(report)
    if source is None:
        return made
    checks, _ = _checked(path, _subject(source), ExportOptions(**report["options"]))
    made.checks.append(f"each of its weights is that of the model in {source}")
    made.max_error = max(checks["error"].values())
    if checks["parity"]:
        made.checks.append(f"llama.cpp computes with it the outputs of the model in {source}")
        made.max_error = checks["parity"]["llama.cpp"]["worst"]
    return made


TARGET = ExportTarget(
    export,
    Needs(("per-layer", "stock"), 32, 32, "blocks of Q8_0 and Q4_0 hold 32 weights of a row; K-quants, 256"),
    verify=verify,
)
