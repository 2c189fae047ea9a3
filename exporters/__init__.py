"""Exporters: everything that a program or a saved model can become."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphprune.contracts import Exporter
from graphprune.registry import Registry, discover

EXPORTERS: Registry[str, Exporter] = Registry("target")

#: By target, what repeats the check of a folder, given its report; `exporters.verify` makes the error of it.
VERIFIERS: Registry[str, Callable[[Path, Mapping[str, Any]], Any]] = Registry("target")

discover(__name__, __path__)
