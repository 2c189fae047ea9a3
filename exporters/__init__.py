"""Exporters: everything that a program or a saved model can become."""

from graphprune.contracts import Exporter
from graphprune.registry import Registry, discover

EXPORTERS: Registry[str, Exporter] = Registry("target")

discover(__name__, __path__)
