"""Trimming before pruning: the pruned model is one with fewer tokens, and the budget counts both."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from graphprune.axes.groups import Dependencies
from graphprune.errors import OptionError, PlanError
from graphprune.frontends.loading import load
from graphprune.ir.program import Program, Trimmed
from graphprune.planning.budget import UNITS
from graphprune.support import cache
from graphprune.workflows.hub.hub_commit import path_of
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.trimming.trim import TrimRun, source_folder
from graphprune.workflows.trimming.trim_options import Tokens

log = logging.getLogger("graphprune.run")


def trimmed_first(options: PruneOptions) -> Program:
    """The program to prune: with the tokens of a corpus alone, if there is one, and with the original as a fact.

    The trimmed model is made once, in the cache folder.

    Raises:
        GraphpruneError: a subclass of it, if the model cannot be loaded or trimmed.
    """
    model = str(path_of(options, str(options.model)))
    if not options.trim:
        return load(model, dequantize=options.dequantize, sizes=options.sizes, merge_adapters=options.merge_adapters)
    _require_alone(options)
    folder = source_folder(model, options.merge_adapters)
    tokens = Tokens(tokens=options.trim_tokens, coverage=options.trim_coverage)
    run = TrimRun.of(folder, tokens, options.trim)
    _require_unprotected(run, options)

    def fill(target: Path) -> None:
        run.fill(target, run.measured({}), {}).save(target)

    choice = hashlib.sha256(repr(sorted(run.retained)).encode()).hexdigest()[:16]
    small = cache.once(f"trimmed-{choice}", _files(folder), fill)
    return load(small).with_facts(Trimmed(run.source.program))


def _require_alone(options: PruneOptions) -> None:
    """Refuse options that need the trimmed model before it exists, or bound the memory."""
    options_apart = {"plan_only": options.plan_only, "goal": options.searches, "memory": options.memory is not None}
    if named := [name for name, value in options_apart.items() if value]:
        raise OptionError(
            f"{named[0]} cannot be combined with trim; trim first (graphprune trim), then prune the new folder"
        )


def _files(folder: Path) -> Iterator[Path]:
    """Files of a folder that a trimmed one is made of."""
    return (path for path in folder.iterdir() if path.is_file())


def _require_unprotected(run: TrimRun, options: PruneOptions) -> None:
    for name, dim in sorted(run.source.axes.dims):
        if {name, f"{name}:{dim}"} & {*options.protect}:
            raise OptionError(f"protect names {name}, whose rows are tokens that trim removes; omit one of the two")


def remaining_sparsity(program: Program, options: PruneOptions) -> float | None:
    """Sparsity of a trimmed program with which the whole reduction is that of the options.

    Raises:
        PlanError: if the trim alone removes as much, or its share of the budget is not known.
    """
    if options.sparsity is None or Trimmed not in program.facts:
        return options.sparsity
    if options.budget == "latency":
        raise PlanError("the latency of removed tokens is not measured; trim first, then prune the trimmed folder")
    before, after = (_amount(one, options.budget) for one in (program.fact(Trimmed).original, program))
    share = 1 - (1 - options.sparsity) * before / after
    if share <= 0:
        raise PlanError(
            f"the trim alone removes {1 - after / before:.1%} of the {UNITS[options.budget]}, as much as the sparsity "
            f"of {options.sparsity:.1%}; request a higher one, or use graphprune trim alone"
        )
    log.info("the trim removes %.1f %%, the cut %.1f %% of the rest", 100 * (1 - after / before), 100 * share)
    return share


def _amount(program: Program, budget: str) -> float:
    """Amount of a budget that a program has."""
    if budget == "parameters":
        return program.count() + program.constants
    return sum(term.at({}) for term in program.fact(Dependencies).terms[budget])


def with_remaining(options: PruneOptions, program: Program) -> PruneOptions:
    """Options of the cut that is left to do."""
    return replace(options, sparsity=remaining_sparsity(program, options))
