"""Check of a saved folder against its program: loaded by transformers, or read again one segment at a time."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graphprune.display.units import byte_size
from graphprune.errors import ExportError, GraphpruneError, because
from graphprune.execution import interpreter
from graphprune.execution.output_comparison import Discrepancy
from graphprune.exporters.checks.agreement import compare_closely, numbers
from graphprune.huggingface import model_folder, per_layer
from graphprune.huggingface.meta_models import auto_class, stock_class
from graphprune.ir.program import Inputs, Program

Destination = Literal["stock", "per-layer"]
Capture = Callable[[Path], Program]
WHOLE = "transformers loaded the folder in float32, and the outputs of both were compared"


@dataclass(frozen=True)
class FolderCheck:
    """Error of a folder against its program; `compared` names the two sides and `how` describes the method."""

    error: Discrepancy
    compared: str
    how: str


def check(
    program: Program, folder: Path, load: Callable[[Path], nn.Module], *, limit: int | None = None,
    capture: Capture | None = None,
) -> FolderCheck:  # fmt: skip
    """Compare a folder with its program, with weights `rounded` as stored, on the program's example inputs.

    If the weights take more than `limit` bytes in float32, transformers does not load them: `capture` reads the folder
    again, and both programs run with the weights of at most one segment in memory; else `load` returns the module.

    Raises:
        ExportError: if the folder cannot be loaded, weights are missing, or the outputs differ.
    """
    size = 4 * program.count()
    if limit is None or size <= limit:
        return FolderCheck(_whole(program, load(folder)), "reloaded folder and rewritten graph", WHOLE)
    if capture is None:
        raise ExportError(
            f"{folder} takes {byte_size(size)} in float32, more than the limit of {byte_size(limit)}, and no function "
            "was passed that reads it in parts"
        )
    how = (
        f"the weights take {byte_size(size)} in float32, and the limit was {byte_size(limit)}: graphprune "
        "read the folder again, by the class that its config.json names, and ran it a part at a time to compare "
        "outputs; transformers did not load it"
    )
    return FolderCheck(_in_parts(program, folder, capture), "folder read again in parts and rewritten graph", how)


def _whole(program: Program, reloaded: nn.Module) -> Discrepancy:
    args, kwargs = program.inputs
    with torch.no_grad():
        expected = [t.clone() for t in numbers(program.module()(*args, **kwargs))]
        gc.collect()
        outputs = numbers(reloaded(*args, **kwargs))
    return compare_closely(
        "the reloaded model", outputs, expected, lambda: numbers(reloaded(*args, **kwargs))[: len(expected)]
    )


def _in_parts(program: Program, folder: Path, capture: Capture) -> Discrepancy:
    """Compare segment by segment, without either model in memory."""
    expected = _outputs(program, program.inputs)
    try:
        reloaded = capture(folder)
        if unshared := reloaded.inputs[1].keys() ^ program.inputs[1].keys():
            raise ExportError(f"only one of its class and the program has inputs {', '.join(sorted(unshared))}")
        outputs = _outputs(reloaded, program.inputs)
    except (GraphpruneError, RuntimeError, ValueError) as fault:
        raise ExportError(f"the saved folder cannot be read again{because(fault)}") from fault
    return compare_closely(
        "the folder, read again,", outputs, expected, lambda: _outputs(reloaded, program.inputs)[: len(expected)]
    )


def _outputs(program: Program, inputs: Inputs) -> list[Tensor]:
    (output,) = interpreter.run(program, [inputs], (0,))
    return numbers(output)


def reload(folder: Path, destination: Destination, own: Any = None) -> nn.Module:
    """The saved model in float32, loaded as users load it; `own` is its class if it is none of transformers.

    Raises:
        ExportError: if it cannot be loaded, or weights are missing.
    """
    config = own.config_class.from_pretrained(folder) if own else model_folder.config(folder)
    config.use_cache = False
    kind: Any = own or stock_class(config)
    loader: Any = per_layer.model_class(kind) if destination == "per-layer" else own or auto_class(config)
    try:
        model, info = loader.from_pretrained(
            str(folder), config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (RuntimeError, ValueError, KeyError, OSError) as fault:
        raise ExportError(f"the saved folder cannot be loaded again{because(fault)}") from fault
    if unusable := sorted(info["missing_keys"]) or sorted(map(str, info["mismatched_keys"])):
        raise ExportError(
            f"the saved folder lacks {len(unusable)} weights that {type(model).__name__} has, the first {unusable[0]}"
        )
    loaded: nn.Module = model.eval()
    return loaded
