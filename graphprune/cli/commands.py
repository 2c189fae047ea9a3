"""The commands; each calls one function of `graphprune.api` and shows what it returned."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from graphprune import api
from graphprune.cli import dependencies, logs, show, tables
from graphprune.cli.edge import command, print_json
from graphprune.cli.options import (
    Align,
    Autocast,
    Budget,
    Calibration,
    Coarse,
    Device,
    Evaluate,
    Folder,
    Folders,
    Force,
    Inexact,
    Json,
    Latency,
    Length,
    Memory,
    Method,
    Model,
    NewFile,
    Numbers,
    Output,
    PageFile,
    PlanOnly,
    Plot,
    Protect,
    Ratios,
    RefitBy,
    Restart,
    Runtime,
    Scratch,
    Seed,
    Sensitivity,
    Shots,
    Sparsity,
    Target,
    Text,
    Trials,
    Where,
    Windows,
    shares,
    sizes,
)
from graphprune.evaluation.multiple_choice import KINDS
from graphprune.passes.allocation.search import Search
from graphprune.passes.calibration.measure_latency import MeasureLatency
from graphprune.reports import graph_export
from graphprune.reports.report import Report, plain
from graphprune.version import __version__
from graphprune.workflows.catalogue import RECIPES
from graphprune.workflows.sensitivity_scan import RATIOS

app = typer.Typer(
    name="graphprune",
    help="Make models narrower: find what can be cut, cut it, repair the rest, prove it and ship it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Show = Callable[[], None]
TRIED = ",".join(map(str, RATIOS))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"graphprune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    shown: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result and errors, nothing else.")] = False,
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, help="Log every pass with its seconds; -vv logs more.", metavar=""),
    ] = 0,
    log_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append everything that is logged to a file, with times.")
    ] = None,
) -> None:
    """Make models narrower: find what can be cut, cut it, repair the rest, prove it and ship it.

    -q, -v and --log-file may stand behind the name of a command, too.
    """
    logs.configure(-1 if quiet else verbose, log_file)


@app.command()
@command
def inspect(
    model: Model,
    dot: Annotated[Path | None, typer.Option(help="Write the dependency graph for Graphviz.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write the dependency graph as GraphML.")] = None,
    graph_json: Annotated[
        Path | None, typer.Option(help="Write the dependency graph as JSON, in networkx's node-link form.")
    ] = None,
    sensitivity: Numbers = None,
    parameter: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Explain these parameters in full, and nothing else.")
    ] = None,
    json: Json = False,
) -> Show:
    """Show what can be cut out of a model, what cannot, and why."""
    program = api.load(model)
    found = api.analyze(program)
    graph = graph_export.coloured(found.to_networkx(), graph_export.read_numbers(sensitivity) if sensitivity else {})
    writers = (graph_export.write_dot, graph_export.write_graphml, graph_export.write_json)
    for path, write in zip((dot, graphml, graph_json), writers, strict=True):
        if path:
            write(graph, path)
    if json:
        return partial(print_json, {"model": model, **dependencies.table(program, found, parameter)})
    if parameter:
        return partial(dependencies.print_explanations, found.explain(parameter))
    return partial(dependencies.print_tables, model, found)


@app.command()
@command
def view(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The new page.", show_default=False)],
    plan: Annotated[Path | None, typer.Option(help="Show what this plan, or that of a run's folder, removes.")] = None,
    report: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Compare runs, folders that prune wrote; repeatable.")
    ] = None,
    sensitivity: Numbers = None,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Write a page of HTML that shows the dependency graph, and needs nothing else."""
    numbers = graph_export.read_numbers(sensitivity) if sensitivity else None
    made = api.view(model, output=output, plan=plan, reports=report or (), sensitivity=numbers, force=force)
    facts = {name: len(made[name]) for name in ("groups", "tensors", "modules", "calls", "runs")}
    return _answer(f"{model} shown in {output}", {"page": output, **facts, "bytes": output.stat().st_size}, json)


@app.command()
@command
def prune(
    model: Model,
    sparsity: Sparsity,
    output: Output,
    recipe: Method = "fasp",
    calibration: Calibration = None,
    samples: Annotated[int, typer.Option(help="Windows of the calibration text.", min=1)] = 128,
    length: Length = 512,
    autocast: Autocast = False,
    target: Target = None,
    align: Align = None,
    destination: Where = None,
    protect: Protect = None,
    inexact: Inexact = False,
    seed: Seed = 0,
    budget: Budget = "parameters",
    latency: Latency = MeasureLatency.table,
    runtime: Runtime = MeasureLatency.runtime,
    trials: Trials = Search.trials,
    shots: Shots = None,
    coarse: Coarse = None,
    sensitivity: Sensitivity = "",
    evaluate: Evaluate = None,
    windows: Windows = 64,
    plan_only: PlanOnly = False,
    device: Device = "cpu",
    memory: Memory = None,
    scratch: Scratch = None,
    restart: Restart = False,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Prune a model and save it, verified, with a report. A run that was killed goes on when it is repeated."""
    result = api.prune(
        model, recipe=recipe, sparsity=sparsity, calibration=calibration, output=output, samples=samples, length=length,
        autocast=autocast, target=target, align=align, destination=destination.value if destination else None,
        protect=tuple(protect or ()), exact_only=not inexact, seed=seed, budget=budget, latency=latency,
        runtime=runtime, trials=trials, shots=shots, coarse=coarse, sensitivity=sensitivity,
        evaluate=tuple(evaluate or ()), windows=windows, plan_only=plan_only, force=force,
        device=device, memory=memory, scratch=scratch, restart=restart,
    )  # fmt: skip
    return _answer(f"{model} {'planned' if plan_only else 'pruned'} into {output}", result.report, json)


@app.command()
@command
def apply(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="A plan, or the folder of the run that saved it.", show_default=False)],
    output: Output,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Cut a model by a saved plan."""
    result = api.apply_plan(model, plan, output=output, force=force)
    return _answer(f"{plan} applied to {model}", result.report, json)


@app.command()
@command
def sensitivity(
    model: Model,
    text: Text,
    output: NewFile,
    plot: Plot = None,
    recipe: Method = "fasp",
    ratios: Ratios = TRIED,
    refit: RefitBy = None,
    samples: Annotated[int, typer.Option(help="Windows of the text; one of eight is measured on.", min=2)] = 64,
    length: Length = 256,
    destination: Where = None,
    protect: Protect = None,
    inexact: Inexact = False,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Measure the loss when each group alone is cut, by several shares, with and without a refit.

    Stopped in between, the same command goes on where it was: what is measured is kept beside the output.
    """
    found = api.sensitivity(
        model, text=text, output=output, plot=plot, recipe=recipe, ratios=shares(ratios), refit=refit, samples=samples,
        length=length, destination=destination.value if destination else "free", protect=tuple(protect or ()),
        exact_only=not inexact, seed=seed, force=force,
    )  # fmt: skip
    return partial(print_json, found.to_dict()) if json else partial(show.sensitivities, f"{model} on {text}", found)


@app.command("eval")
@command
def evaluate(
    model: Model,
    text: Text,
    length: Length = 512,
    windows: Annotated[int | None, typer.Option(help="Take only so many windows.", min=1)] = None,
    json: Json = False,
) -> Show:
    """Measure the perplexity of a language model on a text."""
    return _answer(f"{model} on {text}", api.evaluate(model, text, length=length, windows=windows), json)


@app.command()
@command
def ask(
    model: Model,
    questions: Annotated[
        Path, typer.Option(help=f"A file of JSON lines: {KINDS}; may end in .gz.", show_default=False)
    ],
    first: Annotated[int | None, typer.Option(help="Ask only so many, from the first.", min=1)] = None,
    json: Json = False,
) -> Show:
    """Measure how many questions a language model answers rightly, without examples."""
    found = api.ask(model, questions, first=first)
    told = {"acc": found.acc, "acc_norm": found.acc_norm, "deviation": found.deviation, "questions": len(found.right)}
    details = {"right": found.right, "right_norm": found.right_norm}
    return partial(print_json, told | details) if json else partial(tables.facts, f"{model} on {questions}", told)


@app.command()
@command
def verify(folder: Folder, json: Json = False) -> Show:
    """Check that a saved folder is whole, loads, and is what its report says."""
    return _answer(f"{folder} is whole", api.verify_folder(folder), json)


@app.command()
@command
def export(
    folder: Folder,
    target: Annotated[str, typer.Option(help=f"What to write: {', '.join(api.TARGETS)}.", show_default=False)],
    output: Output,
    dtype: Annotated[str | None, typer.Option(help="fp32 or fp16; the target's own if left out.")] = None,
    quant: Annotated[str, typer.Option(help="Weights in fewer bits: none, int8 or int4.")] = "none",
    opset: Annotated[int | None, typer.Option(help="The version of ONNX operators.")] = None,
    static: Annotated[
        str | None,
        typer.Option(metavar="NAME=N,...", help="Fixed sizes: batch, sequence, past of a cache, written by a decoder."),
    ] = None,
    portable: Annotated[bool, typer.Option("--portable", help="What most readers take, whatever it costs.")] = False,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Write a saved model for another runtime, checked against the original."""
    made = api.export(
        folder,
        target=target,
        output=output,
        dtype=dtype,
        quant=quant,
        opset=opset,
        static=sizes(static),
        portable=portable,
        force=force,
    )
    return partial(print_json, made) if json else partial(show.export, f"{folder} as {target}", made)


@app.command()
@command
def compare(folders: Folders, output: PageFile = None, force: Force = False, json: Json = False) -> Show:
    """Put pruned models side by side: sizes, quality where it was measured, time, memory."""
    found = api.compare(*folders)
    if output is not None:
        found.save(output, force)
    return partial(print_json, found.to_dict()) if json else partial(show.comparison, found)


@app.command()
@command
def recipes(json: Json = False) -> Show:
    """List the pruning methods; --json tells the score, allocation and refit of each."""
    if json:
        return partial(print_json, RECIPES)
    rows = [[r.name, f"{r.description} ({r.source})", " ".join(r.needs) or "-"] for r in RECIPES.values()]
    return partial(tables.rows, "recipes", ("name", "what it does", "needs"), rows)


def _answer(title: str, found: object, json: bool) -> Show:
    if isinstance(found, Report):
        return partial(print_json, found.to_dict()) if json else partial(show.report, title, found)
    return partial(print_json, found) if json else partial(tables.facts, title, plain(found))
