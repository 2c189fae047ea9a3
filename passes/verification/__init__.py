"""Verification: the cut graph computes what the masked original computes."""

from graphprune.registry import discover

discover(__name__, __path__)
