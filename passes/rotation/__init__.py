"""Rotation: residual streams turned to their principal axes."""

from graphprune.registry import discover

discover(__name__, __path__)
