"""Read exported programs from .pt2 files without running code from them."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2  # torch.export.load falls back to a format that is all pickles

from graphprune.errors import LoadError, because
from graphprune.ir import archive_bounds, pt2_safety

_OUTPUT_TYPES = re.compile(r"transformers(?:\.\w+)*\.(?:modeling_\w+)(?=\.\w)")


def read(file: Path) -> ExportedProgram:
    """Read the program in a file.

    Raises:
        LoadError: if the file is missing or corrupt, or might run code when read.
    """
    if not file.is_file():
        raise LoadError(f"{file} does not exist, expected a program saved with torch.export.save")
    try:
        archive_bounds.check_records(file, file.stat().st_size)
        archive_bounds.check_contents(file)
        reader = PT2ArchiveReader(str(file))
        pt2_safety.inspect(reader)
        _register_outputs(reader)
        with file.open("rb") as opened:
            exported = load_pt2(opened).exported_programs["model"]
        _check_declared(exported)
        return exported
    except LoadError as fault:
        raise LoadError(f"{file} is refused: {fault}") from fault
    except Exception as fault:
        raise LoadError(
            f"{file} ({file.stat().st_size} bytes) is truncated, corrupt or of another version of torch than "
            f"{torch.__version__}{because(fault)}; save it again with torch.export.save"
        ) from fault


def _check_declared(exported: ExportedProgram) -> None:
    """Check that stored tensors have the types and shapes that the graph declares, which torch does not.

    Raises:
        LoadError: if one has not.
    """
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    for spec in exported.graph_signature.input_specs:
        stored = exported.state_dict.get(spec.target or "", exported.constants.get(spec.target or ""))
        declared = values.get(spec.arg.name)
        if not isinstance(stored, Tensor) or not isinstance(declared, Tensor):
            continue
        kinds = [f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in (stored, declared)]
        if kinds[0] != kinds[1]:
            raise LoadError(f"{spec.target} is stored as {kinds[0]}, and its graph declares {kinds[1]}")


def inputs(exported: ExportedProgram, file: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs of a program that was read from a file, positional and named.

    Raises:
        LoadError: if it holds none.
    """
    if exported.example_inputs is None:
        raise LoadError(f"{file} holds no example inputs; save it again as torch.export.export returned it")
    args, kwargs = exported.example_inputs
    return tuple(args), dict(kwargs)


def _register_outputs(reader: PT2ArchiveReader) -> None:
    """Import the modules of transformers whose output classes the program returns, so that torch knows them."""
    graph = archive_bounds.parsed(reader.read_string(pt2_safety.MODEL))
    calls = graph.get("graph_module", {}).get("module_call_graph", [])
    for name in sorted(set(_OUTPUT_TYPES.findall(json.dumps(calls)))):
        import_module(name)
