"""Functions of the library, each of which does a whole task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import nn

from graphprune.axes.groups import Dependencies
from graphprune.errors import require_path, require_paths
from graphprune.evaluation import multiple_choice, perplexity
from graphprune.execution.equivalence import verify_cut
from graphprune.execution.output_comparison import Verification
from graphprune.exporters import EXPORTERS
from graphprune.exporters.checks import scoring
from graphprune.exporters.contract import ExportOptions, ExportReport
from graphprune.exporters.model_folders.folder_files import require_apart
from graphprune.exporters.onnx_tools.onnx_files import MODEL
from graphprune.frontends import gguf_models, loading
from graphprune.frontends.modules import trace as trace
from graphprune.healing.heal import heal as heal
from graphprune.huggingface import model_folder
from graphprune.huggingface.hub_models import local_path
from graphprune.ir.program import Dropped, Program, require_program
from graphprune.passes.depth.drop_blocks import drop
from graphprune.passes.verification.verify import prove
from graphprune.planning.plan import Plan, require_plan
from graphprune.reports import viewer
from graphprune.reports.comparison import Comparison
from graphprune.reports.graph_export import Numbers
from graphprune.reports.viewer.content import runs_of
from graphprune.support.atomic_output import check_file, new_folder
from graphprune.workflows import free_destination
from graphprune.workflows.hub.hub_upload import push_to_hub as push_to_hub
from graphprune.workflows.option_fields import takes
from graphprune.workflows.options import PlanOptions
from graphprune.workflows.prune import apply_plan as apply_plan
from graphprune.workflows.prune import prune as prune
from graphprune.workflows.recipes.recipe import plan_pipeline
from graphprune.workflows.saved_folder import apply as apply
from graphprune.workflows.saved_folder import load_into, write
from graphprune.workflows.saved_folder import verify_folder as verify_folder
from graphprune.workflows.sensitivity_scan import sensitivity as sensitivity
from graphprune.workflows.target_needs import GRAPH, TargetNeeds
from graphprune.workflows.trimming.trim import trim as trim

M = TypeVar("M", bound=nn.Module)


@overload
def load(
    model: str | Path,
    *,
    dequantize: bool = False,
    sizes: Mapping[str, int] | None = None,
    revision: str | None = None,
    offline: bool = False,
    merge_adapters: bool = False,
) -> Program: ...
@overload
def load(model: str | Path, *, into: M) -> M: ...
def load(
    model: str | Path,
    *,
    into: nn.Module | None = None,
    dequantize: bool = False,
    sizes: Mapping[str, int] | None = None,
    revision: str | None = None,
    offline: bool = False,
    merge_adapters: bool = False,
) -> Any:
    """Load a model folder or file, one of the hub, or ``package.module:callable``, as a program; or a pruned module.

    A model of the hub, ``org/name`` or ``org/name/file.onnx``, is read from the local cache, and downloaded if it is
    not there and `offline` is not set; `revision` is a branch, a tag or a commit of it. Local folders take precedence.

    Quantized weights of an ONNX file become floating-point numbers if `dequantize` is set, and are refused otherwise.
    `sizes` has sizes of its dynamic dimensions, by their names, at which it runs, where it does not run at all.
    `merge_adapters` adds the adapter (LoRA) of a folder to its model first.

    A module that `prune` saved is loaded into a new one of its class (`into`), which is narrowed first, and returned.

    Raises:
        LoadError: if no frontend accepts it, its files cannot be read, or they do not fit `into`, which is unchanged.
        TraceError: if torch.export refuses the model.
    """
    if into is not None:
        return load_into(Path(model), into)
    return loading.load(
        model, dequantize=dequantize, sizes=sizes, revision=revision, offline=offline, merge_adapters=merge_adapters
    )


def analyze(program: Program) -> Dependencies:
    """Find all groups of coupled axes; repeated calls return the same object."""
    return require_program(program).fact(Dependencies)


@takes(PlanOptions)
def plan(options: PlanOptions) -> Plan:
    """Choose the retained indices of every group.

    Give a `sparsity`, or what to remove by name (`ratio`, `widths`, `drop`, `drop_blocks`). With a `budget` in
    ``macs``, ``kv_cache`` or ``latency``, the sparsity is a share of all multiply-accumulates, of the bytes that a
    decoder caches per token, or of the latency. Recipes that need calibration read it from a text (`calibration`), or
    from `batches`; recipes that need gradients use the loss of causal language models, or `loss` for other models.

    Raises:
        PlanError: if the target cannot be met.
        CalibrationError: if the recipe needs calibration data and has none.
    """
    require_program(options.program)
    needs = TargetNeeds.of(options.target, options.destination, options.align, GRAPH)
    program = needs.accepted(options.program)
    resolved = replace(options, destination=needs.destination, align=needs.align_of(program))
    return plan_pipeline(resolved)(program).fact(Plan)


def verify(program: Program, small: Program, plan: Plan) -> Verification:
    """Verify that `small` has the outputs of `program` with everything outside the plan set to zero.

    Raises:
        VerificationError: if it does not.
    """
    require_program(program)
    require_program(small, "small")
    if require_plan(plan).blocks and Dropped not in program.facts:
        program = drop(program, plan.blocks)
    if plan.blocks and not plan.groups:
        return verify_cut(program, small, {})
    return prove(program, small, plan)


def save(
    program: Program, *, output: str | Path, destination: str = "free", force: bool = False
) -> list[tuple[str, float]]:
    """Save a program as a folder for `export` and `load`, which appears once it is reloaded and agrees.

    Destination ``free`` holds any program, pruned or not; the others hold models of transformers. Returns each
    comparison that was made, with its largest error relative to the typical value.

    Raises:
        ExportError: if the destination cannot hold it, the files do not agree with it, or `output` may not be written.
    """
    require_program(program)
    if program.source is not None:
        require_apart(program.source.path, Path(output))
    with new_folder(output, force) as folder:
        return write(program, folder, destination)


def evaluate(
    model: Program | str | Path,
    text: str | Path,
    *,
    length: int = 512,
    windows: int | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> perplexity.Evaluation:
    """Measure the perplexity of a language model on consecutive windows of a text.

    The model is anything that `load` accepts, with `revision` and `offline` as there, or an exported folder, which ONNX
    Runtime runs.

    Raises:
        LoadError: if the model, its tokenizer or the text cannot be read.
        CalibrationError: if the text is too short, or the model predicts no finite numbers.
    """
    if not isinstance(model, Program):
        model = local_path(model, revision, offline)
    if not isinstance(model, Program) and (Path(model) / MODEL).is_file():
        return scoring.evaluate(Path(model), text, length=length, windows=windows)
    if not isinstance(model, Program) and not model_folder.is_folder(Path(model)):
        model = load(model)
    return perplexity.evaluate(model, text, length=length, windows=windows)


def ask(
    model: Program | str | Path,
    questions: str | Path,
    *,
    first: int | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> multiple_choice.Accuracy:
    """Measure the zero-shot accuracy of a language model on a file of questions (see `multiple_choice`).

    The model is anything that `load` accepts, with `revision` and `offline` as there.

    Raises:
        LoadError: if the model, its tokenizer or the questions cannot be read.
        CalibrationError: if there is no question, or the model predicts no finite numbers.
    """
    if not isinstance(model, Program):
        model = local_path(model, revision, offline)
    if not isinstance(model, Program) and not model_folder.is_folder(Path(model)):
        model = load(model)
    return multiple_choice.ask(model, questions, first)


def compare(*folders: str | Path) -> Comparison:
    """Compare runs of `prune` or `apply_plan` by the reports in their folders.

    Raises:
        LoadError: if a folder holds no report, or there are fewer than two.
    """
    for folder in folders:
        require_path("folder", folder, "write each folder as an argument of its own")
    return Comparison.of(folders)


def export(
    folder: str | Path,
    *,
    target: str,
    output: str | Path,
    dtype: str | None = None,
    quant: str = "none",
    opset: int | None = None,
    static: Mapping[str, int] | None = None,
    portable: bool = False,
    force: bool = False,
    revision: str | None = None,
    offline: bool = False,
) -> ExportReport:
    """Write a saved model, a .gguf file or a model of the hub for another runtime; the output appears when checked.

    For the options see `ExportOptions`; each target supports some of them.

    Raises:
        ExportError: if it cannot be exported with these options, or does not agree with the original.
        RegistryError: if the target does not exist.
    """
    options = ExportOptions(dtype, quant, opset, dict(static or {}), portable)
    source = Path(local_path(folder, revision, offline))
    source = gguf_models.folder(source) if source.suffix.lower() == ".gguf" else source
    if model_folder.holds_graph(source):
        return free_destination.export(source, target, Path(output), options, force=force)
    return EXPORTERS[target].export(source, Path(output), options, force=force)


def view(
    model: Program | str | Path,
    *,
    output: str | Path,
    plan: Plan | str | Path | None = None,
    reports: Sequence[str | Path] = (),
    sensitivity: Numbers | None = None,
    title: str = "",
    force: bool = False,
    dequantize: bool = False,
    sizes: Mapping[str, int] | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> viewer.Content:
    """Write a self-contained HTML page that shows the dependency graph of a model; return its content.

    `plan`, a plan, its file or the folder of a run, adds removed and retained indices. `reports`, folders of runs, are
    compared. `sensitivity`, numbers by the name of a group, colors the groups; measured `Sensitivities` add a heat map.
    A model is loaded with `dequantize`, `sizes`, `revision` and `offline`, as by `load`.

    Raises:
        LoadError: if the model, the plan or a report cannot be read, or a report is one of another model.
        PlanError: if the plan or the sensitivities are those of another model.
        RegistryError: if `sensitivity` names no group.
        ExportError: if `output` exists and `force` is not set, or may not be written.
    """
    require_paths("reports", reports)
    check_file(output, force)
    program = (
        model
        if isinstance(model, Program)
        else load(model, dequantize=dequantize, sizes=sizes, revision=revision, offline=offline)
    )
    runs = runs_of(program, reports)
    cuts = plan if isinstance(plan, Plan) or plan is None else Plan.load(plan)
    if cuts and cuts.blocks and Dropped not in program.facts:
        program = drop(program, cuts.blocks)
    name = title or ("model" if isinstance(model, Program) else Path(model).name)
    shown = viewer.content(program, analyze(program), title=name, plan=cuts, reports=runs, numbers=sensitivity)
    viewer.write(shown, output, force=force)
    return shown
