"""Commands: each calls one function of `graphprune.api` and shows its result.

Commands import the functions that they call when they run, so that help texts are shown without torch.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli import logs, tables
from graphprune.cli.arguments import (
    Dequantize,
    Folder,
    Folders,
    Force,
    Json,
    Length,
    Model,
    NewPage,
    Numbers,
    Offline,
    Output,
    PageFile,
    Questions,
    Revision,
    Sizes,
    Text,
    sizes,
    target_names,
)
from graphprune.cli.edge import command, print_json
from graphprune.cli.option_flags import Show, Values, options_of
from graphprune.healing.heal_options import HealOptions
from graphprune.version import __version__
from graphprune.workflows.options import AMOUNTS, PruneOptions, SensitivityOptions
from graphprune.workflows.trimming.trim_options import TrimOptions

app = typer.Typer(
    name="graphprune",
    help="Make models narrower: find what can be cut, cut it, refit the rest, verify it and export it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(requested: bool) -> None:
    if requested:
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
    """Make models narrower: find what can be cut, cut it, refit the rest, verify it and export it.

    -q, -v and --log-file may also follow the name of a command.
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
        str | None, typer.Option(metavar="GLOB", help="Explain only these parameters, in full.")
    ] = None,
    at: Sizes = None,
    dequantize: Dequantize = False,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> Show:
    """Show which parts of a model can be cut, which cannot, and why."""
    from graphprune import api
    from graphprune.cli import dependencies
    from graphprune.reports import graph_export

    program = api.load(
        model, dequantize=dequantize, sizes=sizes(at, "--sizes"), revision=revision, offline=offline
    )  # fmt: skip
    analysis = api.analyze(program)
    graph = graph_export.colored(analysis.to_networkx(), graph_export.read_numbers(sensitivity) if sensitivity else {})
    writers = (graph_export.write_dot, graph_export.write_graphml, graph_export.write_json)
    for path, write in zip((dot, graphml, graph_json), writers, strict=True):
        if path:
            write(graph, path)
    if json:
        return partial(print_json, {"model": model, **dependencies.table(program, analysis, parameter)})
    if parameter:
        return partial(dependencies.print_explanations, analysis.explain(parameter))
    return partial(dependencies.print_tables, model, analysis)


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
    at: Sizes = None,
    dequantize: Dequantize = False,
    revision: Revision = None,
    offline: Offline = False,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Write a self-contained HTML page that shows the dependency graph."""
    from graphprune import api
    from graphprune.reports import graph_export

    numbers = graph_export.read_numbers(sensitivity) if sensitivity else None
    made = api.view(
        model,
        output=output,
        plan=plan,
        reports=report or (),
        sensitivity=numbers,
        force=force,
        dequantize=dequantize,
        sizes=sizes(at, "--sizes"),
        revision=revision,
        offline=offline,
    )
    facts = {name: len(made[name]) for name in ("groups", "tensors", "modules", "calls", "runs")}
    return _answer(f"{model} shown in {output}", {"page": output, **facts, "bytes": output.stat().st_size}, json)


@app.command()
@command
@options_of(PruneOptions, require=("model", "output", "|".join(AMOUNTS)))
def prune(options: Values, json: bool) -> Show:
    """Prune a model and save it, verified, with a report. A killed run continues when it is repeated."""
    from graphprune import api

    result = api.prune(**options)
    done = "planned" if options.get("plan_only") else "pruned"
    return _answer(f"{options['model']} {done} into {options['output']}", result.report, json)


@app.command()
@command
def apply(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="A plan, or the folder of the run that saved it.", show_default=False)],
    output: Output,
    revision: Revision = None,
    offline: Offline = False,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Prune a model by a saved plan."""
    from graphprune import api

    result = api.apply_plan(model, plan, output=output, force=force, revision=revision, offline=offline)
    return _answer(f"{plan} applied to {model}", result.report, json)


@app.command()
@command
@options_of(HealOptions, require=("pruned", "data", "output"))
def heal(options: Values, json: bool) -> Show:
    """Train a pruned model towards the dense one, and save it, verified. A killed run continues when it is repeated."""
    from graphprune import api
    from graphprune.cli import show

    healing = api.heal(**options)
    if json:
        return partial(print_json, healing)
    return partial(show.healing, f"{options['pruned']} healed into {options['output']}", healing)


@app.command()
@command
@options_of(TrimOptions, require=("model", "text", "output"))
def trim(options: Values, json: bool) -> Show:
    """Remove the tokens that a corpus does not need from a model and its tokenizer, and save both, verified."""
    from graphprune import api
    from graphprune.cli import show

    made = api.trim(**options)
    return partial(print_json, made) if json else partial(show.trimming, f"{made.model} trimmed", made)


@app.command()
@command
@options_of(SensitivityOptions, require=("model", "text", "output"))
def sensitivity(options: Values, json: bool) -> Show:
    """Measure the loss when each group alone is cut, at several ratios, with and without a refit.

    An interrupted command continues when it is repeated: finished groups are stored in a folder next to the output.
    """
    from graphprune import api
    from graphprune.cli import show

    table = api.sensitivity(**options)
    if json:
        return partial(print_json, table.to_dict())
    return partial(show.sensitivities, f"{options['model']} on {options['text']}", table)


@app.command("eval")
@command
def evaluate(
    model: Model,
    text: Text,
    length: Length = 512,
    windows: Annotated[int | None, typer.Option(help="Use only so many windows, from the first.", min=1)] = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> Show:
    """Measure the perplexity of a language model on a text."""
    from graphprune import api

    made = api.evaluate(model, text, length=length, windows=windows, revision=revision, offline=offline)
    return _answer(f"{model} on {text}", made, json)


@app.command()
@command
def ask(
    model: Model,
    questions: Questions,
    first: Annotated[int | None, typer.Option(help="Ask only so many, from the first.", min=1)] = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> Show:
    """Measure the zero-shot accuracy of a language model on multiple-choice questions."""
    from graphprune import api

    accuracy = api.ask(model, questions, first=first, revision=revision, offline=offline)
    table = {name: getattr(accuracy, name) for name in ("acc", "acc_norm", "deviation")}
    table["questions"] = len(accuracy.right)
    details = {"right": accuracy.right, "right_norm": accuracy.right_norm}
    return partial(print_json, table | details) if json else partial(tables.facts, f"{model} on {questions}", table)


@app.command()
@command
def verify(folder: Folder, json: Json = False) -> Show:
    """Check that a saved folder is complete, loads, and agrees with its report."""
    from graphprune import api

    return _answer(f"{folder} is whole", api.verify_folder(folder), json)


@app.command()
@command
def export(
    folder: Folder,
    target: Annotated[str, typer.Option(help=f"What to write: {', '.join(target_names())}.", show_default=False)],
    output: Output,
    dtype: Annotated[str | None, typer.Option(help="fp32 or fp16; the default is that of the target.")] = None,
    quant: Annotated[str, typer.Option(help="Weights in fewer bits: none, int8 or int4.")] = "none",
    opset: Annotated[int | None, typer.Option(help="The version of ONNX operators.")] = None,
    static: Annotated[
        str | None,
        typer.Option(metavar="NAME=N,...", help="Fixed sizes: batch, sequence, past of a cache, written by a decoder."),
    ] = None,
    portable: Annotated[
        bool, typer.Option("--portable", help="The variant that most readers accept, at the cost of size or speed.")
    ] = False,
    revision: Revision = None,
    offline: Offline = False,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Write a saved model, a .gguf file or a model of the hub for another runtime, checked against the original."""
    from graphprune import api
    from graphprune.cli import show

    made = api.export(
        folder,
        target=target,
        output=output,
        dtype=dtype,
        quant=quant,
        opset=opset,
        static=sizes(static, "--static"),
        portable=portable,
        force=force,
        revision=revision,
        offline=offline,
    )
    return partial(print_json, made) if json else partial(show.export, f"{folder} as {target}", made)


@app.command()
@command
def push(
    folder: Folder,
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The model on the hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    branch: Annotated[str | None, typer.Option("--revision", metavar="BRANCH", help="main by default.")] = None,
    json: Json = False,
) -> Show:
    """Upload a saved model to the hub, once it is verified."""
    from graphprune import api

    made = api.push_to_hub(folder, repository, private=private, revision=branch)
    return _answer(f"{folder} uploaded to {repository}", made, json)


@app.command()
@command
def compare(folders: Folders, output: PageFile = None, force: Force = False, json: Json = False) -> Show:
    """Compare pruned models: sizes, measured quality, time, memory."""
    from graphprune import api
    from graphprune.cli import show

    comparison = api.compare(*folders)
    if output is not None:
        comparison.save(output, force)
    return partial(print_json, comparison.to_dict()) if json else partial(show.comparison, comparison)


@app.command()
@command
def recipes(json: Json = False) -> Show:
    """List the pruning methods; --json prints the pipeline of each."""
    from graphprune.workflows.recipes.catalogue import RECIPES

    if json:
        return partial(print_json, {name: recipe.to_dict() for name, recipe in RECIPES.items()})
    rows = [[r.name, f"{r.description} ({r.source})", " ".join(r.needs) or "-"] for r in RECIPES.values()]
    return partial(tables.rows, "recipes", ("name", "what it does", "needs"), rows)


def _answer(title: str, result: object, json: bool) -> Show:
    from graphprune.cli import show
    from graphprune.reports.report import Report, plain

    if isinstance(result, Report):
        return partial(print_json, result.to_dict()) if json else partial(show.report, title, result)
    return partial(print_json, result) if json else partial(tables.facts, title, plain(result))
