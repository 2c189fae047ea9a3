"""Reconstructions: methods that refit the retained weights of a consumer, one per file."""

from graphprune.planning.interfaces import Reconstruction
from graphprune.registry import Registry, discover

RECONSTRUCTIONS: Registry[str, Reconstruction] = Registry("reconstruction")

discover(__name__, __path__)
