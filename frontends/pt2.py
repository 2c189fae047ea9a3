"""A saved exported program (.pt2) becomes a program; reading it runs no code from the file."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2  # torch.export.load falls back to a format that is all pickles

from graphprune import hf
from graphprune.errors import LoadError
from graphprune.frontends import FRONTENDS, Frontend, pt2_safety
from graphprune.frontends.lowering import functional
from graphprune.frontends.modules import from_exported
from graphprune.program import Program, Source

_OUTPUT_TYPES = re.compile(r"transformers(?:\.\w+)*\.(?:modeling_\w+)(?=\.\w)")


def load(file: Path | str) -> Program:
    """The program of a .pt2 file, or of a folder with a ``model.pt2``.

    Raises:
        LoadError: if the file is missing or corrupt, might run code when read, or holds no example inputs.
    """
    file = Path(file)
    file = file / hf.PROGRAM if file.is_dir() else file
    if not file.is_file():
        raise LoadError(f"{file} does not exist, expected a program saved with torch.export.save")
    exported = _read(file)
    if exported.example_inputs is None:
        raise LoadError(f"{file} holds no example inputs; save it again as torch.export.export made it")
    args, kwargs = exported.example_inputs
    source = Source(file, "pt2", _dtype(exported.state_dict))
    return from_exported(functional(exported), (tuple(args), dict(kwargs)), source=source)


def _read(file: Path) -> ExportedProgram:
    try:
        reader = PT2ArchiveReader(str(file))
        pt2_safety.inspect(reader)
        _register_outputs(reader)
        with file.open("rb") as opened:
            return load_pt2(opened).exported_programs["model"]
    except LoadError as fault:
        raise LoadError(f"{file} is refused: {fault}") from fault
    except Exception as fault:
        said = (str(fault).splitlines() or [""])[0]
        raise LoadError(
            f"{file} ({file.stat().st_size} bytes) is truncated, corrupt or of another version of torch than "
            f"{torch.__version__}: {type(fault).__name__} {said}; save it again with torch.export.save"
        ) from fault


def _register_outputs(reader: PT2ArchiveReader) -> None:
    """Import the modules of transformers whose output classes the program returns, so that torch knows them."""
    graph = json.loads(reader.read_string(pt2_safety.MODEL))
    for name in sorted(set(_OUTPUT_TYPES.findall(json.dumps(graph.get("module_call_graph", []))))):
        import_module(name)


def _dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    counts = Counter(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    return counts.most_common(1)[0][0] if counts else torch.float32


def _is_pt2(text: str) -> bool:
    return text.endswith(".pt2") or (Path(text) / hf.PROGRAM).is_file()


FRONTENDS.register("pt2")(
    Frontend("a .pt2 file saved by torch.export.save, or a folder with a model.pt2", _is_pt2, load),
)
