"""Analysis: groups of coupled axes, derived from the rules of operators."""

from graphprune.registry import discover

discover(__name__, __path__)
