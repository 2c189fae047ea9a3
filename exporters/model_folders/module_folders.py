"""Folders of further modules that a modules.json lists, such as pooling and dense layers of sentence-transformers."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch.utils._pytree as pytree
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import fx

from graphprune.axes.groups import Dependencies
from graphprune.axes.index_sets import retained_indices
from graphprune.errors import ExportError
from graphprune.ir.program import Program, Rewritten
from graphprune.planning.plan import primes_to_keep

LIST, WEIGHTS = "modules.json", "model.safetensors"


def copy_modules(source: Path, folder: Path) -> None:
    """Copy the folders of all listed modules except the model itself; code is not copied."""
    for name in _listed(source):
        shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("*.py"), symlinks=False)


def follow_width(folder: Path, before: object, after: object, retained: Sequence[int] = ()) -> None:
    """Set the width of the embeddings in the copied modules, up to the first linear layer, whose columns are cut.

    `retained` are the indices of the embedding that remain; without them, no weights can follow.

    Raises:
        ExportError: if a module has weights for the width before that cannot follow.
    """
    for name in _listed(folder) if before != after else ():
        path = folder / name / "config.json"
        table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        is_linear = table.get("in_features") == before
        if is_linear or _holds(folder / name, before):
            if not (is_linear and len(retained) == after and _cut_columns(folder / name / WEIGHTS, before, retained)):
                raise ExportError(
                    f"{name} has weights for embeddings of width {before}, which the cut makes {after}: protect the "
                    "hidden size, or take the module out of modules.json"
                )
            table["in_features"] = after
        changed = {k: after if k.endswith("embedding_dimension") and v == before else v for k, v in table.items()}
        if changed != table or is_linear:
            path.write_text(json.dumps(changed, indent=4) + "\n", encoding="utf-8")
        if is_linear:
            return  # later modules read its outputs


def embedding_indices(program: Program, width: object) -> list[int]:
    """Retained indices of the first output whose last dimension has this width before a cut; none if there is none."""
    if Rewritten not in program.facts:
        return []
    rewritten = program.fact(Rewritten)
    dependencies = rewritten.original.fact(Dependencies)
    keep = primes_to_keep(dependencies, rewritten.groups)
    outputs = pytree.tree_leaves(rewritten.original.graph.output_node().args[0])
    axes = [dependencies.axes_of(leaf.name) for leaf in outputs if isinstance(leaf, fx.Node)]
    last = (dims[-1] for dims in axes if dims and dims[-1].size == width)
    return next((retained_indices(axis, keep) for axis in last), [])


def _holds(folder: Path, width: object) -> bool:
    """Whether a module has a tensor with a dimension of this width."""
    if not (folder / WEIGHTS).is_file():
        return False
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return any(width in file.get_slice(key).get_shape() for key in file.keys())  # noqa: SIM118 - no mapping


def _cut_columns(file: Path, before: object, retained: Sequence[int]) -> bool:
    """Cut the columns of the only matrix of a linear layer that reads the embedding; whether there is one."""
    tensors = load_file(file) if file.is_file() else {}
    matrices = [name for name, tensor in tensors.items() if tensor.dim() == 2 and tensor.shape[1] == before]
    if len(matrices) != 1:
        return False
    tensors[matrices[0]] = tensors[matrices[0]][:, list(retained)].contiguous()
    save_file(tensors, file, {"format": "pt"})
    return True


def _listed(folder: Path) -> Iterator[str]:
    """Names of the folders of the listed modules that exist in this folder."""
    path = folder / LIST
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    for entry in entries if isinstance(entries, list) else []:
        name = entry.get("path") if isinstance(entry, dict) else None
        if (
            isinstance(name, str)
            and name not in ("", ".", "..")
            and Path(name).name == name
            and (folder / name).is_dir()
        ):
            yield name
