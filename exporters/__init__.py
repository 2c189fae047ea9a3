"""Exporters: everything that a program or a saved model can become."""

from collections.abc import Callable
from pathlib import Path

from graphprune.contracts import Exporter
from graphprune.registry import Registry, discover

EXPORTERS: Registry[str, Exporter] = Registry("target")

#: What `verify_folder` checks in a folder of that target besides its model: says what was right, or raises.
CHECKS: Registry[str, Callable[[Path], list[str]]] = Registry("check of a target")

discover(__name__, __path__)
