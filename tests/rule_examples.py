"""Operator rules by name, those that have examples of their own, and the examples as programs."""

from functools import cache

import torch

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Example
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.operators import RULES

KINDS = {type(rule).__name__: rule for rule in RULES.values()}
#: One rule for each set of examples: a rule may inherit those of another.
WITH_EXAMPLES = {type(rule).examples: kind for kind, rule in reversed(KINDS.items())}.values()
EXAMPLES = [(kind, i) for kind in WITH_EXAMPLES for i, _ in enumerate(KINDS[kind].examples())]


@cache
def captured(kind: str, i: int) -> tuple[Program, Dependencies]:
    """The program of an example, and its axes."""
    torch.manual_seed(0)
    example: Example = list(KINDS[kind].examples())[i]
    program = trace(example.module, example.args)
    found = analyze(program)
    return program.with_facts(found), found
