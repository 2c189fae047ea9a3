"""Analysis: groups of coupled axes, found by the rules of operators."""

from graphprune.registry import discover

discover(__name__, __path__)
