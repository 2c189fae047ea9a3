"""Allocations: which share of its indices every group keeps; one method a file."""

from graphprune.planning.interfaces import Allocation
from graphprune.registry import Registry, discover

ALLOCATIONS: Registry[str, Allocation] = Registry("allocation")

discover(__name__, __path__)
