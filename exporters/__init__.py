"""Exporters: everything that a program or a saved model can become."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphprune.exporters.contract import Exporter, FolderVerification, Needs
from graphprune.registry import Registry, discover

EXPORTERS: Registry[str, Exporter] = Registry("target")

#: What each target wants of a model before it is pruned.
NEEDS: dict[str, Needs] = {}

#: What `verify_folder` checks in a folder of that target besides its model: says what was right, or raises.
CHECKS: Registry[str, Callable[[Path], list[str]]] = Registry("check of a target")

#: By target, what repeats the check of a folder, given its report; `exporters.verify` makes the error of it.
VERIFIERS: Registry[str, Callable[[Path, Mapping[str, Any]], FolderVerification]] = Registry("target")

discover(__name__, __path__)
