"""Measuring how sensitive a model is to the cut of each of its groups: load, measure, save, draw."""

from pathlib import Path

from graphprune.errors import CalibrationError
from graphprune.frontends.loading import load
from graphprune.ir.program import Program
from graphprune.pipeline import Pipeline
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.reports import heatmap
from graphprune.support.atomic_output import check_file, new_file
from graphprune.workflows.option_fields import takes
from graphprune.workflows.options import SensitivityOptions
from graphprune.workflows.recipe import sensitivity_pipeline


@takes(SensitivityOptions)
def sensitivity(options: SensitivityOptions) -> Sensitivities:
    """Cut each group that a recipe cuts alone, by several shares, and measure the loss, with and without a refit.

    The model is a program, or whatever `load` takes. Data are windows of a `text`, or `batches`; of eight batches one
    is held out to measure on, and the refit is fitted to the others. The loss is that of the next token, of other than
    language models the error of the outputs.

    The table is saved as `output`; until then every trial is kept in a file next to it, with which the same call
    continues.

    Raises:
        GraphpruneError: one of its kinds, with what, where, got, expected and what to do.
    """
    if not options.text and not options.batches:
        raise CalibrationError("sensitivities are measured on data; name a text (--text FILE), or pass batches")
    _require_outputs(options)
    journal = journal_of(options.output) if options.output is not None else None
    model = options.model if isinstance(options.model, Program) else load(options.model)
    passes = sensitivity_pipeline(options, options.ratios, str(journal or ""))
    table = _measured(passes, model, journal)
    if options.plot is not None:
        with new_file(options.plot, options.force) as file:
            heatmap.draw(table, file)
    if options.output is not None and journal is not None:
        table.save(options.output, options.force)
        journal.unlink(missing_ok=True)
    return table


def _require_outputs(options: SensitivityOptions) -> None:
    """Refuse, before any work, outputs that may not or cannot be written."""
    for path in (options.output, options.plot):
        if path is not None:
            check_file(path, options.force)
    if options.plot is not None:
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
