"""The commands; each calls one function of `graphprune.api` and shows what it returned."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from graphprune import api
from graphprune.choices import KINDS
from graphprune.cli import dependencies, draw, show
from graphprune.cli.edge import command, print_json
from graphprune.cli.options import (
    Align,
    Autocast,
    Budget,
    Calibration,
    Coarse,
    Folder,
    Force,
    Inexact,
    Json,
    Latency,
    Length,
    Method,
    Model,
    Output,
    PlanOnly,
    Protect,
    Runtime,
    Seed,
    Shots,
    Sparsity,
    Target,
    Text,
    Trials,
    Where,
    sizes,
)
from graphprune.passes.measure import Measure
from graphprune.passes.search import Search
from graphprune.recipes import RECIPES
from graphprune.report import Report, plain
from graphprune.version import __version__

app = typer.Typer(
    name="graphprune",
    help="Make models narrower: find what can be cut, cut it, repair the rest, prove it and ship it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Show = Callable[[], None]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"graphprune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    shown: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Make models narrower: find what can be cut, cut it, repair the rest, prove it and ship it."""


@app.command()
@command
def inspect(
    model: Model,
    dot: Annotated[Path | None, typer.Option(help="Write the dependency graph for Graphviz.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write the dependency graph as GraphML.")] = None,
    parameter: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Explain these parameters in full, and nothing else.")
    ] = None,
    json: Json = False,
) -> Show:
    """Show what can be cut out of a model, what cannot, and why."""
    program = api.load(model)
    found = api.analyze(program)
    if dot:
        draw.write_dot(found.to_networkx(), dot)
    if graphml:
        draw.write_graphml(found.to_networkx(), graphml)
    if json:
        return partial(print_json, {"model": model, **dependencies.table(program, found, parameter)})
    if parameter:
        return partial(dependencies.print_explanations, found.explain(parameter))
    return partial(dependencies.print_tables, model, found)


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
    latency: Latency = Measure.table,
    runtime: Runtime = Measure.runtime,
    trials: Trials = Search.trials,
    shots: Shots = None,
    coarse: Coarse = None,
    plan_only: PlanOnly = False,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Prune a model and save it, verified, with a report."""
    result = api.prune(
        model, recipe=recipe, sparsity=sparsity, calibration=calibration, output=output, samples=samples, length=length,
        autocast=autocast, target=target, align=align, destination=destination.value if destination else None,
        protect=tuple(protect or ()), exact_only=not inexact, seed=seed, budget=budget, latency=latency,
        runtime=runtime, trials=trials, shots=shots, coarse=coarse, plan_only=plan_only, force=force,
    )  # fmt: skip
    return _answer(f"{model} {'planned' if plan_only else 'pruned'} into {output}", result.report, json)


@app.command()
@command
def apply(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="A plan that graphprune saved.", show_default=False)],
    output: Output,
    force: Force = False,
    json: Json = False,
) -> Show:
    """Cut a model as a saved plan says."""
    result = api.apply_plan(model, plan, output=output, force=force)
    return _answer(f"{plan} applied to {model}", result.report, json)


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
    return partial(print_json, told | details) if json else partial(show.facts, f"{model} on {questions}", told)


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
def recipes(json: Json = False) -> Show:
    """List the pruning methods; --json tells the score, allocation and refit of each."""
    if json:
        return partial(print_json, RECIPES)
    rows = [[r.name, f"{r.description} ({r.source})", " ".join(r.needs) or "-"] for r in RECIPES.values()]
    return partial(show.rows, "recipes", ("name", "what it does", "needs"), rows)


def _answer(title: str, found: object, json: bool) -> Show:
    if isinstance(found, Report):
        return partial(print_json, found.to_dict()) if json else partial(show.report, title, found)
    return partial(print_json, found) if json else partial(show.facts, title, plain(found))
