"""Destination free: save the graph itself as a .pt2 file and as ONNX, a decoder with its cache."""

import logging
import shutil
from pathlib import Path

import torch

from graphprune.axes.groups import Dependencies
from graphprune.errors import ExportError, LoadError, PackageError, PlanError, VerificationError
from graphprune.execution.equivalence import verify_finite
from graphprune.execution.output_comparison import compare
from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, FolderVerification
from graphprune.exporters.export_folders.export_report import require_intact_weights
from graphprune.exporters.export_folders.folder_check import verify_folder
from graphprune.exporters.model_folders.folder_files import copy_companion_files, require_apart
from graphprune.exporters.onnx_tools.onnx_files import MODEL
from graphprune.exporters.onnx_tools.onnx_subjects import ONNX_FOLDER
from graphprune.exporters.subjects.decoders import cached_decoder, is_decoder
from graphprune.exporters.targets import onnx, pt2
from graphprune.frontends.loading import load
from graphprune.frontends.modules import trace
from graphprune.huggingface import model_folder
from graphprune.huggingface.followed_config import shorten_module
from graphprune.ir.program import Dropped, ExpertSplit, Factored, Program, Rewritten, Rotatable, Source
from graphprune.ir.weights import Layered
from graphprune.passes.experts.expert_graph import with_experts
from graphprune.passes.experts.feed_forward import feed_forward_layers
from graphprune.passes.low_rank.factor_graph import factored
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.passes.rotation.fuse_norms import prepare
from graphprune.planning.facts import Refits
from graphprune.planning.plan import Plan
from graphprune.reports.report import FILE as REPORT
from graphprune.reports.report import Report
from graphprune.solvers import new_biases
from graphprune.solvers.embedding_tables import embedding_tables
from graphprune.solvers.factorable import factorable
from graphprune.solvers.row_groups import GroupedFactors
from graphprune.support.atomic_output import new_folder
from graphprune.support.undo import Undo
from graphprune.workflows.masked_file import NotMaskableError, compare_with_masked

log = logging.getLogger(__name__)

NO_ONNX = "no_onnx.txt"  # in the folder: why there are no ONNX files
STATE = ("past_key_values*", "[[]1]*")  # the cache: inputs by name, outputs by position after the logits


def write(program: Program, folder: Path) -> list[tuple[str, float]]:
    """Fill a folder; return each comparison that was made, with its relative error.

    Raises:
        ExportError: if a file cannot be written, or does not agree with the program.
    """
    report = pt2.write(program, folder / model_folder.PROGRAM)
    comparisons = [("reloaded .pt2 and rewritten graph", float(report.facts["error"]["relative"]))]
    source = program.source if program.source is not None and program.source.kind == "huggingface" else None
    try:
        if source is not None:
            return [*comparisons, *_write_model(program, source, folder)]
        comparisons.append(_export(program, folder))
        return [*comparisons, *_compare_with_file(program, folder)]
    except (ExportError, PackageError) as fault:  # a user's module may have operators that ONNX lacks
        if _must_be_onnx(program) and not isinstance(fault, PackageError):
            raise
        log.warning("no ONNX files were written: %s", fault)
        (folder / NO_ONNX).write_text(f"{fault}\n", encoding="utf-8")
        return comparisons


def _must_be_onnx(program: Program) -> bool:
    """Whether a program without ONNX files would lack what its users take for granted."""
    return program.source is not None and program.source.kind in ("huggingface", "onnx")


def _write_model(program: Program, source: Source, folder: Path) -> list[tuple[str, float]]:
    """Add the files of a Hugging Face folder and the ONNX model, with its cache if it is a decoder."""
    copy_companion_files(source.path, folder)
    model = model_folder.module(source.path)
    dropped = program.facts.get(Dropped)
    if not is_decoder(model) or (dropped is not None and dropped.follow is None):
        return [_export(program, folder)]  # a decoder that lacks parts of blocks has no cache of its own
    shorten_module(Undo(), model, source.dropped)
    cached = with_cache(program, model)
    agreement = "graph with cache and rewritten graph", _agree(program, cached)
    return [agreement, _export(cached, folder)]


def _export(program: Program, folder: Path) -> tuple[str, float]:
    """Write the ONNX files; return their greatest error relative to the graph."""
    report = onnx.export_program(program, folder / ONNX_FOLDER)
    return "ONNX and graph", max(float(case["worst"]) for case in report.facts["parity"].values())


def _compare_with_file(program: Program, folder: Path) -> list[tuple[str, float]]:
    """Compare the ONNX file with the one that was pruned, for a program that was loaded from one."""
    if program.source is None or program.source.kind != "onnx":
        return []
    try:
        error = compare_with_masked(program, folder / ONNX_FOLDER / MODEL)
    except NotMaskableError as why:
        log.warning(
            "the ONNX file is compared with the graph, and not with the masked %s: %s", program.source.path, why
        )
        return []
    return [("ONNX and masked original file", error)]


def with_cache(program: Program, model: torch.nn.Module) -> Program:
    """Repeat the cut of a program on the model captured with its KV cache as inputs and outputs."""
    module, args, kwargs, free = cached_decoder(model)
    whole = trace(module, args, kwargs, dynamic_shapes=free, state=STATE)
    rotatable = program.facts.get(Rotatable)
    if rotatable is not None:
        streams = [group for group in whole.fact(Dependencies).groups if group.name in rotatable.groups]
        whole = prepare(whole, streams, bool(rotatable.shortcuts)).program
    cached = _cut_alike(whole, program)
    split = program.facts.get(ExpertSplit)
    refits = program.facts.get(Refits)
    if refits is not None:
        consumers = cached.fact(Rewritten).original.fact(Dependencies).consumers
        cached, _ = new_biases.add_biases(cached, [c for c in consumers if c.weight in refits.biases])
    changed = (refits.changed if refits else set()) | (rotatable.changed if rotatable else set())
    new = {name: program.weights[name] for name in changed}
    cached = cached.with_facts(weights=Layered((new, cached.weights)), source=program.source)
    ranks = program.facts[Factored].ranks if Factored in program.facts else {}
    dependencies = cached.fact(Dependencies)
    layers = [c for c in factorable(cached, dependencies)[0] if c.weight in ranks]
    sizes = program.facts[Factored].tables if Factored in program.facts else {}
    tables = [table for table in embedding_tables(cached, dependencies)[0] if table.weight in sizes]
    layouts = {table.weight: GroupedFactors.from_parts(program.weights, table.weight, sizes) for table in tables}
    cached = factored(cached, layers, program.weights, tables, layouts)
    if split is None:
        return cached
    dense = [layer for layer in feed_forward_layers(cached)[0] if layer.name in split.sizes]
    return with_experts(cached, dense, split.sizes, program.weights)


def _cut_alike(whole: Program, program: Program) -> Program:
    """Cut the model with its cache by the plan of the program, if there is one."""
    if Plan not in program.facts:
        return whole
    try:
        return rewrite(whole, program.fact(Plan))
    except PlanError as fault:
        raise ExportError(
            f"the cut cannot be repeated on the model with its cache: {fault}; cut it in one step, or save it for "
            "destination stock or per-layer"
        ) from fault


def _agree(program: Program, cached: Program) -> float:
    """Compare the logits of both programs at the start of a text, where the cache is empty."""
    ids = program.inputs[1]["input_ids"]
    positions = torch.arange(ids.shape[1]).expand(*ids.shape).contiguous()
    past = [node.meta["val"].shape for node in cached.graph.nodes if node.op == "placeholder" and "past" in node.name]
    empty = [torch.zeros(ids.shape[0], shape[1], 0, shape[3]) for shape in past]
    leading = (ids, torch.ones_like(ids), positions)[: len(cached.inputs[0]) - 1]
    pairs = list(zip(empty[::2], empty[1::2], strict=True))
    with torch.no_grad():
        logits = cached.module()(*leading, pairs)[0]
        reference = program.module()(**program.inputs[1])
    return compare([reference.logits], [logits], "graph with cache and rewritten graph").max_error


def check_folder(folder: Path) -> FolderVerification:
    """Repeat the checks of a folder that `write` filled.

    Raises:
        VerificationError: if it is damaged, or differs from its report.
    """
    checks = require_intact_weights(folder)
    program = load(folder)
    verify_finite(program)
    result = FolderVerification(folder, "pt2", program.count(), [*checks, "the graph loads", "its outputs are finite"])
    expected = Report.load(folder).parameters_after if (folder / REPORT).is_file() else result.parameters
    if expected != result.parameters:
        raise VerificationError(
            f"{folder} has {result.parameters} parameters, its {REPORT} expects {expected}; save it again"
        )
    if (folder / ONNX_FOLDER).is_dir():
        onnx_result = verify_folder(folder / ONNX_FOLDER)
        result.checks += [f"in {ONNX_FOLDER}: {check}" for check in onnx_result.checks]
        result.max_error = onnx_result.max_error
    return result


def export(folder: Path, target: str, output: Path, options: ExportOptions, *, force: bool = False) -> ExportReport:
    """Export the graph, or the ONNX files of the folder, for a target; `onnx` copies and checks these files.

    Raises:
        ExportError: if the target needs a model that a class of transformers runs, or ONNX files that are missing.
        LoadError: if the graph cannot be read.
        RegistryError: if there is no such target.
    """
    for read in (folder, folder / ONNX_FOLDER, folder / model_folder.PROGRAM):
        require_apart(read, output)
    export, needs = EXPORTERS[target].export, EXPORTERS[target].needs
    if needs.graphs:
        return export(folder, output, options, force=force)
    if not (folder / ONNX_FOLDER).is_dir():
        file = folder / NO_ONNX
        reason = f" (reason: {file.read_text(encoding='utf-8').strip()})" if file.is_file() else ""
        raise ExportError(
            f"{folder} has no ONNX files, which target {target} takes{reason}; use a target that takes the graph "
            f"itself: {', '.join(name for name in sorted(EXPORTERS) if EXPORTERS[name].needs.graphs)}"
        )
    if target == "onnx" and options == NO_OPTIONS:
        return _copied(folder, output, force)
    try:
        return export(folder / ONNX_FOLDER, output, options, force=force)
    except LoadError as fault:
        if "free" in needs.destinations:
            raise
        raise ExportError(
            f"{folder} holds a graph that no class of transformers runs, and target {target} takes one that does; "
            "use another target, or prune with destination stock or per-layer"
        ) from fault


def _copied(folder: Path, output: Path, force: bool) -> ExportReport:
    with new_folder(output, force) as fresh:
        shutil.copytree(folder / ONNX_FOLDER, fresh, dirs_exist_ok=True)
        checks = verify_folder(fresh)
    files = sorted(path.name for path in output.iterdir())
    return ExportReport("onnx", output, files, {"parameters": checks.parameters, "checks": checks.checks})
