"""The commands; each calls one function of `graphprune.api` and shows what it returned.

Commands import what they call when they run, so that help texts are shown without torch.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli import logs, tables
from graphprune.cli.edge import command, print_json
from graphprune.cli.option_flags import Show, Values, options_of
from graphprune.cli.options import (
    Folder,
    Folders,
    Force,
    Json,
    Length,
    Model,
    NewPage,
    Numbers,
    Output,
    PageFile,
    Questions,
    Text,
    sizes,
    target_names,
)
from graphprune.version import __version__
from graphprune.workflows.options import PruneOptions, SensitivityOptions

app = typer.Typer(
    name="graphprune",
    help="Make models narrower: find what can be cut, cut it, repair the rest, prove it and ship it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    from graphprune import api
    from graphprune.cli import dependencies
    from graphprune.reports import graph_export

    program = api.load(model)
    found = api.analyze(program)
    graph = graph_export.colored(found.to_networkx(), graph_export.read_numbers(sensitivity) if sensitivity else {})
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
    output: NewPage,
    plan: Annotated[Path | None, typer.Option(help="Show what this plan, or that of a run's folder, removes.")] = None,
    report: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Compare runs, folders that prune wrote; repeatable.")
    ] = None,
    sensitivity: Numbers = None,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Write a page of HTML that shows the dependency graph, and needs nothing else."""
    from graphprune import api
    from graphprune.reports import graph_export

    numbers = graph_export.read_numbers(sensitivity) if sensitivity else None
    made = api.view(model, output=output, plan=plan, reports=report or (), sensitivity=numbers, force=force)
    facts = {name: len(made[name]) for name in ("groups", "tensors", "modules", "calls", "runs")}
    return _answer(f"{model} shown in {output}", {"page": output, **facts, "bytes": output.stat().st_size}, json)


@app.command()
@command
@options_of(PruneOptions, require=("model", "output", "sparsity|ratio"))
def prune(given: Values, json: bool) -> Show:
    """Prune a model and save it, verified, with a report. A run that was killed continues when it is repeated."""
    from graphprune import api

    result = api.prune(**given)
    done = "planned" if given.get("plan_only") else "pruned"
    return _answer(f"{given['model']} {done} into {given['output']}", result.report, json)


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
    from graphprune import api

    result = api.apply_plan(model, plan, output=output, force=force)
    return _answer(f"{plan} applied to {model}", result.report, json)


@app.command()
@command
@options_of(SensitivityOptions, require=("model", "text", "output"))
def sensitivity(given: Values, json: bool) -> Show:
    """Measure the loss when each group alone is cut, by several shares, with and without a refit.

    Interrupted, the same command continues where it was: finished groups are kept in a folder next to the output.
    """
    from graphprune import api
    from graphprune.cli import show

    table = api.sensitivity(**given)
    if json:
        return partial(print_json, table.to_dict())
    return partial(show.sensitivities, f"{given['model']} on {given['text']}", table)


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
    from graphprune import api

    return _answer(f"{model} on {text}", api.evaluate(model, text, length=length, windows=windows), json)


@app.command()
@command
def ask(
    model: Model,
    questions: Questions,
    first: Annotated[int | None, typer.Option(help="Ask only so many, from the first.", min=1)] = None,
    json: Json = False,
) -> Show:
    """Measure how many questions a language model answers rightly, without examples."""
    from graphprune import api

    found = api.ask(model, questions, first=first)
    told = {"acc": found.acc, "acc_norm": found.acc_norm, "deviation": found.deviation, "questions": len(found.right)}
    details = {"right": found.right, "right_norm": found.right_norm}
    return partial(print_json, told | details) if json else partial(tables.facts, f"{model} on {questions}", told)


@app.command()
@command
def verify(folder: Folder, json: Json = False) -> Show:
    """Check that a saved folder is whole, loads, and is what its report says."""
    from graphprune import api

    return _answer(f"{folder} is whole", api.verify_folder(folder), json)


@app.command()
@command
def export(
    folder: Folder,
    target: Annotated[str, typer.Option(help=f"What to write: {', '.join(target_names())}.", show_default=False)],
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
    from graphprune import api
    from graphprune.cli import show

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
    from graphprune import api
    from graphprune.cli import show

    found = api.compare(*folders)
    if output is not None:
        found.save(output, force)
    return partial(print_json, found.to_dict()) if json else partial(show.comparison, found)


@app.command()
@command
def recipes(json: Json = False) -> Show:
    """List the pruning methods; --json prints the pipeline of each."""
    from graphprune.workflows.catalogue import RECIPES

    if json:
        return partial(print_json, {name: recipe.to_dict() for name, recipe in RECIPES.items()})
    rows = [[r.name, f"{r.description} ({r.source})", " ".join(r.needs) or "-"] for r in RECIPES.values()]
    return partial(tables.rows, "recipes", ("name", "what it does", "needs"), rows)


def _answer(title: str, found: object, json: bool) -> Show:
    from graphprune.cli import show
    from graphprune.reports.report import Report, plain

    if isinstance(found, Report):
        return partial(print_json, found.to_dict()) if json else partial(show.report, title, found)
    return partial(print_json, found) if json else partial(tables.facts, title, plain(found))
