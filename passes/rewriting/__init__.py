"""Rewriting: a plan applied to the graph."""

from graphprune.registry import discover

discover(__name__, __path__)
