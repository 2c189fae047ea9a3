"""The pass that verifies a cut: the rewritten program computes the numbers of the masked original."""

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.axes.groups import Dependencies
from graphprune.execution.equivalence import verify_cut, verify_finite
from graphprune.execution.liveness import Liveness
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.rewriting.rewrite import interface_cut, rewrite
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Refits
from graphprune.planning.plan import Plan, make
from graphprune.planning.refused_choices import refusing


@PASSES.register("verify")
@dataclass(frozen=True)
class Verify(Pass):
    """Compare the program, with its weights before any refit, and the masked original on random inputs."""

    name: ClassVar[str] = "verify"
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Plan)
    reads: ClassVar[tuple[type, ...]] = (Refits,)
    makes: ClassVar[tuple[type, ...]] = (Verification,)
    memory_bounded: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        """The program with the verification.

        Raises:
            VerificationError: if the numbers disagree.
        """
        return program.with_facts(prove(program.fact(Rewritten).original, program, program.fact(Plan)))


def prove(original: Program, small: Program, plan: Plan) -> Verification:
    """Compare the cut with the masked original.

    Experts are masked by a router that never chooses them. Other groups that are neither exact nor rescaled are checked
    for shape and finite numbers.

    Raises:
        VerificationError: if they disagree.
    """
    refits = small.facts.get(Refits)
    if refits is not None:
        verify_finite(small, original)
        small = replace(small, weights=refits.before)
    dependencies = original.fact(Dependencies)
    groups = dependencies.by_name
    routed = {name: rows for name, rows in plan.groups.items() if groups[name].routed}
    zeros = {name: rows for name, rows in plan.groups.items() if groups[name].maskable}
    if len(routed) + len(zeros) < len(plan.groups):
        verify_finite(small, original)
        plan = make(original, dependencies, zeros | routed)
        small = rewrite(original, plan)
    return verify_cut(
        refusing(original, routed) if routed else original,
        small,
        make(original, dependencies, zeros).keep,
        rounded=bool(small.fact(Rewritten).scales),
        interface=interface_cut(original, plan),
        liveness=Liveness.of(dependencies, zeros),
    )
