"""Operator rules by name, and those that have examples of their own."""

from graphprune.passes.operators import RULES

KINDS = {type(rule).__name__: rule for rule in RULES.values()}
#: One rule for each set of examples: a rule may inherit those of another.
WITH_EXAMPLES = {type(rule).examples: kind for kind, rule in reversed(KINDS.items())}.values()
