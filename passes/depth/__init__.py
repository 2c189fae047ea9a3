"""Importances of blocks, by which blocks are dropped; one method per file."""

from graphprune.axes.residual_blocks import Importance
from graphprune.registry import Registry, discover

IMPORTANCES: Registry[str, Importance] = Registry("importance of blocks")

discover(__name__, __path__)
