"""New weights in an ONNX file: stored tensors are known by their old values, as they are or transposed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters.onnx_tools.onnx_files import MODEL, save_onnx, stored_bytes
from graphprune.support.packages import onnx_ir as ir

Key = tuple[tuple[int, ...], bytes]


def copy_with_weights(
    source: Path, output: Path, weights: Mapping[str, tuple[Tensor, Tensor]], report: str = "export_report.json"
) -> None:
    """Copy the folder of an ONNX file with new weights; `weights` are old and new values by name.

    Raises:
        ExportError: if a weight that changed is not stored as it is or transposed, or two weights with equal old values
            cannot be told apart by their names.
    """
    shutil.copytree(source, output, ignore=shutil.ignore_patterns(f"{MODEL}*"))
    model = ir.load(source / MODEL)
    known = _by_value(weights)
    replaced = set()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        old = torch.from_numpy(tensor.numpy().copy())
        places = known.get(_key(old), {})
        if not places:
            continue
        chosen = name if name in places else _single(places, weights, name)
        replaced.add(chosen)
        new = weights[chosen][1].detach().cpu().to(old.dtype)
        value.const_value = ir.tensor((new.T if places[chosen] else new).contiguous().numpy(), name=name)
    changed = {name for name, (old, new) in weights.items() if not torch.equal(old, new)}
    if lost := sorted(changed - replaced):
        raise ExportError(f"{source / MODEL} does not store {lost[0]} as it is; export the model again")
    save_onnx(model, output)
    _set_size(output / report, stored_bytes(output / MODEL))


def require_known(source: Path, weights: Mapping[str, Tensor]) -> None:
    """Check that the ONNX file of a folder stores each of these weights, so that `copy_with_weights` can change it.

    Raises:
        ExportError: if it does not store one as it is or transposed, or one of its tensors is several of them.
    """
    known = _by_value({name: (weight, weight) for name, weight in weights.items()})
    found: set[str] = set()
    for name, value in ir.load(source / MODEL).graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        places = known.get(_key(torch.from_numpy(tensor.numpy().copy())), {})
        if len(places) > 1 and name not in places:
            raise ExportError(f"the stored tensor {name} has the values of {' and of '.join(list(places)[:2])}")
        found |= {name} if name in places else places.keys()
    if lost := sorted(weights.keys() - found):
        raise ExportError(f"{source / MODEL} does not store {lost[0]} as it is")


def _by_value(weights: Mapping[str, tuple[Tensor, Tensor]]) -> dict[Key, dict[str, bool]]:
    """Names of weights by their old values, each with whether these are transposed."""
    known: dict[Key, dict[str, bool]] = {}
    for name, (old, _) in weights.items():
        known.setdefault(_key(old), {})[name] = False
        if old.dim() == 2:
            known.setdefault(_key(old.T), {}).setdefault(name, True)
    return known


def _single(places: Mapping[str, bool], weights: Mapping[str, tuple[Tensor, Tensor]], stored: str) -> str:
    """Weight that a stored tensor holds; weights with equal new values are one."""
    first, *others = places
    if any(not torch.equal(weights[first][1], weights[other][1]) for other in others):
        raise ExportError(f"the stored tensor {stored} has the values of {first} and of {others[0]}")
    return first


def _key(tensor: Tensor) -> Key:
    values = tensor.detach().cpu().contiguous()
    return tuple(values.shape), hashlib.sha256(values.reshape(-1).view(torch.uint8).numpy().data).digest()


def _set_size(path: Path, size: int) -> None:
    """Set the size of the files in the report of the export."""
    if path.is_file():
        table = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**table, "bytes": size}, indent=2) + "\n", encoding="utf-8")
