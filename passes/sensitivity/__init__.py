"""Sensitivity: the growth of the loss when one group alone is cut."""

from graphprune.registry import discover

discover(__name__, __path__)
