"""Scores: how much every index of a group matters; one method a file."""

from graphprune.planning.interfaces import ScoreMethod
from graphprune.registry import Registry, discover

SCORES: Registry[str, ScoreMethod] = Registry("score")

discover(__name__, __path__)
