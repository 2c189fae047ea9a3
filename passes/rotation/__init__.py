"""Rotation: residual streams in the basis of their principal axes."""

from graphprune.registry import discover

discover(__name__, __path__)
