"""Reconstructions: new values for what is left of a consumer; one method a file."""

from graphprune.planning.interfaces import Reconstruction
from graphprune.registry import Registry, discover

RECONSTRUCTIONS: Registry[str, Reconstruction] = Registry("reconstruction")

discover(__name__, __path__)
