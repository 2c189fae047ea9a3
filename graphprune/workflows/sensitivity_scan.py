"""Measuring how sensitive a model is to the cut of each of its groups: load, measure, save, draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphprune.errors import CalibrationError
from graphprune.frontends.loading import load
from graphprune.ir.program import Program
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Loss
from graphprune.passes.sensitivity.measure_sensitivity import Sense
from graphprune.pipeline import Pipeline
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.reports import heatmap
from graphprune.support.atomic_output import check_file, new_file
from graphprune.workflows import recipe as assembly
from graphprune.workflows.catalogue import RECIPES

RATIOS = Sense.ratios


def sensitivity(
    model: Program | str | Path,
    *,
    text: str | Path = "",
    batches: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
    output: str | Path | None = None,
    plot: str | Path | None = None,
    recipe: str = "fasp",
    ratios: Sequence[float] = RATIOS,
    refit: str | None = None,
    samples: int = 64,
    length: int = 256,
    destination: str = "free",
    protect: Sequence[str] = (),
    exact_only: bool = True,
    seed: int = 0,
    loss: Loss | None = None,
    force: bool = False,
) -> Sensitivities:
    """Cut each group that a recipe cuts alone, by several shares, and measure the loss, with and without a refit.

    `model` is a program, or whatever `load` takes. Data are windows of a `text`, or `batches` of ``(args, kwargs)``; of
    eight batches one is held out to measure on, and the others are what the refit is fitted to. `refit` names it: that
    of the recipe, or least squares where that has none or adds biases. The loss is that of the next token, of other
    than language models the error of the outputs.

    The table is saved as `output`; until then every trial is kept in a file beside it, from which the same call goes
    on. `plot` names a picture.

    Raises:
        GraphpruneError: one of its kinds, with what, where, got, expected and what to do.
    """
    if not text and not batches:
        raise CalibrationError("sensitivities are measured on data; name a text (--text FILE), or pass batches")
    _require_outputs(output, plot, force)
    options = assembly.Options(
        destination=destination, protect=tuple(protect), exact_only=exact_only, seed=seed, loss=loss
    )
    data = Calibrate(str(text), samples, length, seed, batches=tuple(batches))
    kept, chosen = journal_of(output) if output is not None else None, RECIPES[recipe]
    sense = Sense(tuple(ratios), refit or assembly.weights_only(chosen), str(kept or ""))
    work = assembly.sensing(chosen, options, data, sense)
    found = _measured(work, model if isinstance(model, Program) else load(model), kept)
    if plot is not None:
        with new_file(plot, force) as file:
            heatmap.draw(found, file)
    if output is not None and kept is not None:
        found.save(output, force)
        kept.unlink(missing_ok=True)
    return found


def _require_outputs(output: str | Path | None, plot: str | Path | None, force: bool) -> None:
    """Refuse, before any work, outputs that may not or cannot be written."""
    for path in (output, plot):
        if path is not None:
            check_file(path, force)
    if plot is not None:
        heatmap.require()


def journal_of(output: str | Path) -> Path:
    """Where finished trials are kept until the table is whole."""
    return Path(f"{output}.journal.jsonl")


def _measured(work: Pipeline, program: Program, kept: Path | None) -> Sensitivities:
    """What the passes measured; who interrupts them is told what is kept."""
    try:
        return work(program).fact(Sensitivities)
    except KeyboardInterrupt as stop:
        if kept is None or not kept.exists():
            raise
        raise KeyboardInterrupt(f"what was measured is in {kept}; the same command goes on from there") from stop
