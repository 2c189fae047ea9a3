"""Targets: one file for each runtime or format that a saved model can be written for."""

from graphprune.registry import discover

discover(__name__, __path__)
