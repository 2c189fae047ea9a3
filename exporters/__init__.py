"""Exporters: everything that a program or a saved model can become."""

from graphprune.contracts import Exporter, Needs
from graphprune.registry import Registry, discover

EXPORTERS: Registry[str, Exporter] = Registry("target")

#: What each target wants of a model before it is pruned.
NEEDS: dict[str, Needs] = {}

discover(__name__, __path__)
