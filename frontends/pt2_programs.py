"""Load a saved exported program (.pt2) without running code from the file."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from graphprune.errors import GraphpruneError, LoadError, because
from graphprune.frontends import FRONTENDS, Frontend
from graphprune.frontends.lowering import functional
from graphprune.frontends.modules import from_exported
from graphprune.frontends.trace_check import CapturedModule, check
from graphprune.huggingface import model_folder
from graphprune.ir import pt2_archive
from graphprune.ir.program import Program, Source


def load(file: Path | str) -> Program:
    """Load a .pt2 file, or a folder with a ``model.pt2``.

    Raises:
        LoadError: if the file is missing or corrupt, might run code when read, or holds no example inputs.
    """
    file = Path(file)
    file = file / model_folder.PROGRAM if file.is_dir() else file
    exported = pt2_archive.read(file)
    args, kwargs = pt2_archive.inputs(exported, file)
    source = Source(file, "pt2", _dtype(exported.state_dict))
    try:
        subject = CapturedModule(exported.module(check_guards=False), {})
        program = from_exported(functional(exported), (args, kwargs), source=source)
    except GraphpruneError:
        raise
    except Exception as fault:  # torch trusts what a file declares, and raises any exception
        raise LoadError(
            f"{file} holds a program that torch {torch.__version__} cannot run{because(fault)}; save it again with "
            "torch.export.save"
        ) from fault
    return check(program, subject)


def _dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    counts = Counter(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    return counts.most_common(1)[0][0] if counts else torch.float32


def _is_pt2(text: str) -> bool:
    return text.endswith(".pt2") or model_folder.holds_graph(Path(text))


FRONTENDS.register("pt2")(
    Frontend("a .pt2 file saved by torch.export.save, or a folder with a model.pt2", _is_pt2, load),
)
