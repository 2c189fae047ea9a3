"""Exporters: everything that a program or a saved model can become."""

from pathlib import Path

from graphprune.exporters.contract import ExportTarget
from graphprune.registry import FileRegistry

#: Targets by name. The one that ``targets/onnx_gpu.py`` defines as `TARGET` is ``onnx-gpu``; plug-ins register theirs.
EXPORTERS: FileRegistry[ExportTarget] = FileRegistry(
    "target", f"{__name__}.targets", [str(Path(__file__).parent / "targets")], "TARGET"
)
