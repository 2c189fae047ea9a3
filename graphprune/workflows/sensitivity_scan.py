"""Measuring how sensitive a model is to the cut of each of its groups: load, measure, save, draw."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graphprune.errors import CalibrationError
from graphprune.frontends.loading import load
from graphprune.ir.program import Program
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.reports import heatmap
from graphprune.support.atomic_output import check_file, new_file
from graphprune.support.resume import resumable
from graphprune.workflows.hub.hub_commit import path_of, pinned
from graphprune.workflows.option_fields import takes
from graphprune.workflows.options import SensitivityOptions
from graphprune.workflows.recipes.recipe import sensitivity_pipeline
from graphprune.workflows.runs.run_record import identity


@takes(SensitivityOptions)
def sensitivity(options: SensitivityOptions) -> Sensitivities:
    """Cut each group that a recipe cuts alone, by several shares, and measure the loss, with and without a refit.

    The model is a program, or whatever `load` takes. Data are windows of a `text`, or `batches`; of eight batches one
    is held out to measure on, and the refit is fitted to the others. The loss is that of the next token, of other than
    language models the error of the outputs.

    The table is saved as `output`; until then finished groups are kept in a folder next to it, with which the same call
    continues.

    Raises:
        GraphpruneError: one of its kinds, with what, where, got, expected and what to do.
    """
    if not options.text and not options.batches:
        raise CalibrationError("sensitivities are measured on data; name a text (--text FILE), or pass batches")
    _require_outputs(options)
    options = pinned(options, options.model)
    program = options.model if isinstance(options.model, Program) else load(path_of(options, options.model))
    passes = sensitivity_pipeline(options, options.ratios)
    with _workspace(options, program):
        table = passes(program).fact(Sensitivities)
        if options.plot is not None:
            with new_file(options.plot, options.force) as file:
                heatmap.draw(table, file)
        if options.output is not None:
            table.save(options.output, options.force)
    return table


def _require_outputs(options: SensitivityOptions) -> None:
    """Refuse, before any work, outputs that may not or cannot be written."""
    for path in (options.output, options.plot):
        if path is not None:
            check_file(path, options.force)
    if options.plot is not None:
        heatmap.require()


@contextmanager
def _workspace(options: SensitivityOptions, program: Program) -> Iterator[None]:
    """Keep finished groups in a folder next to the output for the block; without an output, keep nothing."""
    if options.output is None:
        yield
        return
    output = Path(options.output)
    with resumable(output.parent / f".{output.name}.run", _inputs(options, program), restart=None):
        yield


def _inputs(options: SensitivityOptions, program: Program) -> dict[str, Any]:
    """Everything that the losses depend on; a model that was not read from files is identified by its weights."""
    in_files = isinstance(options.model, str | Path) and Path(path_of(options, options.model)).exists()
    return {**identity(options), **({} if in_files else {"weights": program.checksum()})}
