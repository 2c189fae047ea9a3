"""The pass that restricts a plan to cuts that the captured module can follow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.axes.groups import Dependencies
from graphprune.huggingface.list_entries import renumbered
from graphprune.ir.program import Dropped, Program
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible, Followable
from graphprune.writeback.followable_cuts import followable, is_captured

UNTRIED = "no cut of it was tried on the module"


@PASSES.register("follow")
@dataclass(frozen=True)
class Follow(Pass):
    """Restrict the eligible groups to those that the captured module can have narrower, without padding by zeros.

    They are tried on the module before anything is scored. Later passes of this kind reuse the result, since the module
    in memory has none of their cuts.
    """

    name: ClassVar[str] = "follow"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    reads: ClassVar[tuple[type, ...]] = (Dropped, Followable)
    makes: ClassVar[tuple[type, ...]] = (Eligible, Followable)
    surveys: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        """The program with fewer eligible groups.

        Raises:
            PlanError: if it has no module in memory.
        """
        eligible, known = program.fact(Eligible), program.facts.get(Followable)
        kinds = {group.kind for group in eligible.groups}
        if known is None or (kinds - known.kinds and Dropped not in program.facts and is_captured(program)):
            known = _tried(program, eligible)
        refused = {**dict.fromkeys(kinds - known.kinds, UNTRIED), **known.refused}
        groups = tuple(group for group in eligible.groups if group.kind not in refused)
        names = {group.name for group in groups}
        tied = tuple(tuple(name for name in _renamed(program, tie) if name in names) for tie in known.tied)
        restricted = replace(
            eligible,
            groups=groups,
            refused={**eligible.refused, **{kind: refused[kind] for kind in kinds & refused.keys()}},
            tied=tuple(tie for tie in tied if tie),
        )
        return program.with_facts(restricted, known)


def _tried(program: Program, eligible: Eligible) -> Followable:
    """Cuts that the module in memory can follow; it still has all blocks, so that they are tried before any drop."""
    dropped = program.facts.get(Dropped)
    if dropped is None:
        return followable(rewrite, program, eligible)
    kinds, dependencies = {group.kind for group in eligible.groups}, analyze(dropped.original)
    groups = tuple(group for group in dependencies.groups if group.kind in kinds)
    return followable(rewrite, dropped.original.with_facts(dependencies), replace(eligible, groups=groups))


def _renamed(program: Program, names: Iterable[str]) -> Iterator[str]:
    """Names of groups of the module in memory, in a program that may lack blocks."""
    dropped = program.facts.get(Dropped)
    entries = [block for block in dropped.blocks if ":" not in block] if dropped else []
    for name in names:
        parameter, _, place = name.partition(":")
        if (new := renumbered(parameter, entries)) is not None:
            yield f"{program.name(new)}:{place}"
