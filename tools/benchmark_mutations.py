"""Measure how much the proof sees: make thousands of wrong cuts, and print what share of them it refuses.

Usage: .venv/bin/python tools/benchmark_mutations.py [--every 10] [--graphs 40] [--mutants 30] [--json FILE] [--write]

Cuts of models of the zoo in tests/zoo and of random graphs in tests/fuzz get one mistake each: an index too many or too
few, two swapped, a wrong literal, a missing scale, a mask ignored, a stale buffer, noise or the numbers of another
index in place of a weight. A mutant is real if it changes any output by more than 1e-3 of its typical size on one of
several inputs, drawn independently of those of the proof; the others are equivalent, and counted apart. Every real one
ought to be refused.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from hypothesis import Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parent.parent))  # tests and tools are folders of the checkout

from tests import zoo  # first, for it helps torchvision

# isort: split
import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.display.progress import progress
from graphprune.errors import GraphpruneError, TraceError
from graphprune.execution.equivalence import mask_program, verify_cut
from graphprune.execution.liveness import Liveness
from graphprune.ir.program import Program
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.planning.plan import make
from graphprune.support.atomic_output import new_file
from tests.fuzz.graphs import graphs
from tests.fuzz.law import captured
from tests.fuzz.test_fuzz import QUIET
from tests.fuzz.world import Graph
from tools.documents import fill
from tools.mutation_benchmark.mutants import Case, mutants
from tools.mutation_benchmark.truth import Reference

Source = tuple[str, Callable[[], Program]]


@dataclass(frozen=True)
class Verdict:
    """One mutant: whether it changes an output, and whether the proof refuses it."""

    subject: str
    kind: str
    what: str
    real: bool
    refused: bool


def main() -> None:
    """Make the mutants, judge them, and print the table."""
    options = _parser().parse_args()
    logging.getLogger("graphprune").setLevel(logging.ERROR)
    sources = [*_graphs(options.graphs, options.seed), *_models(options.every, options.match)]
    verdicts: list[Verdict] = []
    with progress("mutants", len(sources)) as step:
        for name, build in sources:
            verdicts += judged(name, build, options.mutants, options.seed)
            _write(options.json, verdicts)
            step()
    print("\n".join([*table(verdicts), "", *_slipped(verdicts)]))
    if options.write:
        fill("benchmark_mutations", "\n".join(summary(verdicts)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=10, help="every so many-th model of the zoo; 0 for none")
    parser.add_argument("--match", default="hf/", help="only models whose name holds this text")
    parser.add_argument("--graphs", type=int, default=40, help="random graphs")
    parser.add_argument("--mutants", type=int, default=30, help="mutants of each model and graph, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for every verdict")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    return parser


def _write(path: Path | None, verdicts: list[Verdict]) -> None:
    """Keep everything so far; the file is complete at any moment."""
    if path is not None:
        with new_file(path, force=True) as file:
            file.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))


def _models(every: int, match: str) -> Iterator[Source]:
    names = [name for name in zoo.NAMES if match in name and not zoo.missing(name)]
    for name in names[::every] if every else ():
        yield name, lambda name=name: _traced(name)  # type: ignore[misc]


def _traced(name: str) -> Program:
    build, inputs = zoo.get(name)
    args, kwargs = inputs()
    return gp.trace(build(), args, kwargs)


def _graphs(count: int, number: int) -> Iterator[Source]:
    """Random graphs with something to cut."""
    drawn: list[Graph] = []

    @seed(number)
    @settings(QUIET, max_examples=max(1, count), phases=[Phase.generate])
    @given(graphs(least=4, most=14))
    def draw(graph: Graph) -> None:
        drawn.append(graph)

    draw()
    for i, graph in enumerate(drawn[:count]):
        yield f"graph {i}", lambda graph=graph: captured(graph)  # type: ignore[misc]


def judged(name: str, build: Callable[[], Program], count: int, number: int) -> Iterator[Verdict]:
    """Verdicts on the mutants of a model; none where nothing can be cut, or its own cut is refused."""
    random = Random(f"{name} {number}")
    torch.manual_seed(number)
    try:
        case = cut(build(), random)
        _prove(case, case.small)
    except (GraphpruneError, TraceError, IndexError):
        return
    reference = Reference.of(mask_program(case.program, case.plan.keep))
    for mutant in mutants(case, count, random):
        real = reference.is_changed_by(mutant.program)
        refused = real and not _is_passed(case, mutant.program)
        yield Verdict(name, mutant.kind, mutant.what, real, refused)


def cut(program: Program, random: Random) -> Case:
    """A random cut of everything that is exact, to half its width or more."""
    found = analyze(program)
    program = program.with_facts(found)
    groups = [group for group in found.groups if group.maskable and group.size > max(1, group.least)]
    rows = {}
    for group in groups:
        width = max(group.least, group.size - random.randint(1, max(1, group.size // 2)))
        width = width if width % group.unit == 0 else group.size
        rows[group.name] = (tuple(sorted(random.sample(range(group.size), width))),)
    plan = make(program, found, rows)
    if not rows:
        raise IndexError("nothing can be cut")
    return Case(program, plan, rewrite(program, plan))


def _is_passed(case: Case, program: Program) -> bool:
    with suppress(Exception):  # whatever is raised refuses it
        _prove(case, program)
        return True
    return False


def _prove(case: Case, program: Program) -> None:
    """Prove a cut as the pass `verify` does, with further cases where units are inactive.

    Raises:
        VerificationError: if it is refused.
    """
    alive = Liveness.of(case.program.fact(Dependencies), case.plan.groups)
    verify_cut(case.program, program, case.plan.keep, liveness=alive)


def table(verdicts: list[Verdict]) -> Iterator[str]:
    """Table in Markdown: for every kind of mistake the mutants, those that change an output, and those refused."""
    yield "| mistake | mutants | without effect | real | refused |"
    yield "|---|---:|---:|---:|---:|"
    for kind in [*dict.fromkeys(v.kind for v in verdicts), ""]:
        own = [v for v in verdicts if v.kind == kind or not kind]
        real, refused = sum(v.real for v in own), sum(v.refused for v in own)
        share = f"{refused / real:.1%}" if real else "-"
        yield f"| {kind or 'all'} | {len(own):,} | {len(own) - real:,} | {real:,} | {refused:,} ({share}) |"


def summary(verdicts: list[Verdict]) -> Iterator[str]:
    """The table, and how many models and graphs it is of."""
    subjects = list(dict.fromkeys(v.subject for v in verdicts))
    drawn = sum(subject.startswith("graph ") for subject in subjects)
    yield from table(verdicts)
    yield f"\nCuts of {len(subjects) - drawn} models and {drawn} graphs."


def _slipped(verdicts: list[Verdict]) -> Iterator[str]:
    slipped = [v for v in verdicts if v.real and not v.refused]
    subjects = Counter(v.subject for v in verdicts)
    yield f"{len(slipped)} real mutants of {len(subjects)} models and graphs passed the proof"
    yield from (f"- {v.subject}: {v.kind}, {v.what}" for v in slipped)


if __name__ == "__main__":
    main()
