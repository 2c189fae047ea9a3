"""Allocations: methods that divide a reduction among groups, one per file."""

from graphprune.planning.interfaces import Allocation
from graphprune.registry import Registry, discover

ALLOCATIONS: Registry[str, Allocation] = Registry("allocation")

discover(__name__, __path__)
