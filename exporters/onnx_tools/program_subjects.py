"""Programs as subjects of an export, for graphs that no transformers class can run (destination free)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from graphprune.errors import ExportError
from graphprune.exporters.onnx_tools.onnx_files import MODEL
from graphprune.exporters.onnx_tools.onnx_subjects import ONNX_FOLDER, input_names
from graphprune.exporters.subjects.subject import PAST, PRESENT, Subject, cache_names, named_dimensions
from graphprune.huggingface import model_folder
from graphprune.ir import pt2_archive
from graphprune.ir.program import Program


def program_subject(program: Program) -> Subject:
    """A program as a subject; its inputs have the names of its placeholders, and those of a cache their usual names.

    Raises:
        ExportError: if its inputs cannot be named.
    """
    call = _Call.of(program.module(), program.graph, *program.inputs)
    return replace(call, args=_with_current_sizes(program, call.args)).subject(bool(program.state))


def named_subject(program: Program, inputs: Sequence[str], outputs: Sequence[str]) -> Subject:
    """A program as a subject whose inputs and outputs have these names, in their order.

    Raises:
        ExportError: if it has other numbers of inputs or outputs.
    """
    call = _Call.of(program.module(), program.graph, *program.inputs)
    args = _with_current_sizes(program, call.args)
    leaves, spec = pytree.tree_flatten(args)
    sizes = list(call.sizes.values())
    with torch.no_grad():
        results = len(pytree.tree_leaves(call.module(*args)))
    if (len(leaves), results) != (len(inputs), len(outputs)):
        raise ExportError(
            f"the program has {len(leaves)} inputs and {results} outputs, expected those of its file: "
            f"{', '.join(inputs)}; {', '.join(outputs)}"
        )
    dynamic = [{d: Dim.AUTO for d, n in enumerate(shape) if not is_concrete_int(n)} for shape in sizes]
    free = pytree.tree_unflatten(dynamic, spec) if any(dynamic) else None
    return Subject(call.module, args, tuple(inputs), tuple(outputs), free)


def saved_subject(folder: Path) -> Subject:
    """The graph saved in a folder (destination free) as a subject.

    Raises:
        LoadError: if it cannot be read.
        ExportError: if its inputs cannot be named, or it is a decoder, whose cache is in the ONNX files only.
    """
    onnx_file = folder / ONNX_FOLDER / MODEL
    if onnx_file.is_file() and any(name.startswith(PAST) for name in input_names(onnx_file)):
        raise ExportError(
            f"{folder} holds the graph of a decoder, whose cache is only in the ONNX files of the folder; use a target "
            "that reads those, or prune with destination stock or per-layer"
        )
    file = folder / model_folder.PROGRAM
    exported = pt2_archive.read(file)
    inputs = pt2_archive.inputs(exported, file)
    return _Call.of(exported.module(), exported.graph, *inputs, exported.graph_signature.user_inputs).subject(False)


@dataclass(frozen=True)
class _Call:
    """A module and its positional arguments; `sizes` are the shapes of the placeholders, with symbols for dynamic
    sizes, and `keywords` the names of inputs that are passed by name."""

    module: nn.Module
    args: tuple[Any, ...]
    sizes: Mapping[str, Sequence[Any]]
    keywords: tuple[str, ...]

    @classmethod
    def of(
        cls, module: nn.Module, graph: fx.Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any],
        inputs: Collection[Any] | None = None,
    ) -> "_Call":  # fmt: skip
        """The call of a graph; `inputs` are the placeholders that are not weights, all of them by default."""
        values = dict[int | str, Any](enumerate(args))
        values.update(kwargs.items())
        constants = {key: value for key, value in values.items() if not _holds_tensors(value)}
        inputs_of = {key: value for key, value in values.items() if key not in constants}
        if not all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(list(inputs_of.values()))):
            raise ExportError(
                "a program with an input of tensors and other things in one cannot be exported; pass the others by name"
            )
        sizes = {str(node.target): node.meta["val"].shape for node in _tensor_inputs(graph, inputs)}
        if not kwargs and not constants:
            return cls(module, args, sizes, ())
        named = tuple(key for key in inputs_of if isinstance(key, str))
        return cls(_Keyed(module, tuple(inputs_of), constants), (tuple(inputs_of.values()),), sizes, named)

    def subject(self, has_cache: bool) -> Subject:
        """The subject; inputs are named by keywords or placeholders, with `has_cache` pairs after them as a cache."""
        leaves = pytree.tree_leaves(self.args)
        past = [leaf for leaf in leaves if leaf.dim() == 4 and leaf.is_floating_point()] if has_cache else []
        order = self.keywords if set(self.keywords) == set(self.sizes) else tuple(self.sizes)
        names = [*order[: len(leaves) - len(past)], *cache_names(PAST, len(past) // 2)]
        with torch.no_grad():
            outputs = pytree.tree_leaves(self.module(*self.args))
        return Subject(
            self.module, self.args, tuple(names), _output_names(outputs, len(past) // 2),
            _dynamic(named_dimensions(names, self.args), [self.sizes[name] for name in order]), _vocabulary(outputs),
        )  # fmt: skip


def _dynamic(names: Any, sizes: Sequence[Sequence[Any]]) -> Any:
    """Names of the dimensions that are dynamic in the graph; None if all are static."""
    leaves, spec = pytree.tree_flatten(names, is_leaf=lambda node: isinstance(node, dict))
    pairs = zip(leaves, sizes, strict=True)
    dynamic = [{dim: name for dim, name in each.items() if not is_concrete_int(shape[dim])} for each, shape in pairs]
    return pytree.tree_unflatten(dynamic, spec) if any(dynamic) else None


def _tensor_inputs(graph: fx.Graph, inputs: Collection[Any] | None = None) -> list[fx.Node]:
    """Placeholders of tensors that are not weights; `inputs` are their names, all by default."""
    nodes = [node for node in graph.nodes if node.op == "placeholder" and (inputs is None or node.name in inputs)]
    return [node for node in nodes if isinstance(node.meta.get("val"), Tensor)]


def _holds_tensors(value: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


class _Keyed(nn.Module):
    """A module called with a tuple of inputs by their `keys`, which are positions and names.

    `constants` are the other arguments by their keys.
    """

    def __init__(self, module: nn.Module, keys: tuple[int | str, ...], constants: Mapping[int | str, Any]) -> None:
        super().__init__()
        self.module, self.keys, self.constants = module, keys, dict(constants)

    def forward(self, inputs: tuple[Any, ...]) -> Any:
        """Call the module with positional and keyword arguments."""
        values = {**self.constants, **dict(zip(self.keys, inputs, strict=True))}
        args = [values[key] for key in sorted(key for key in values if isinstance(key, int))]
        return self.module(*args, **{key: value for key, value in values.items() if isinstance(key, str)})


def _with_current_sizes(program: Program, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Example inputs narrowed to the sizes in the graph: a cut may have narrowed the cache."""
    leaves, spec = pytree.tree_flatten(args)
    nodes = _tensor_inputs(program.graph)
    shapes = [[int(size) if is_concrete_int(size) else None for size in n.meta["val"].shape] for n in nodes]
    fitted = [_narrowed(leaf, shape) for leaf, shape in zip(leaves, shapes, strict=True)]
    result: tuple[Any, ...] = pytree.tree_unflatten(fitted, spec)
    return result


def _narrowed(leaf: Tensor, shape: list[int | None]) -> Tensor:
    for dim, size in enumerate(shape):
        leaf = leaf if size is None else leaf.narrow(dim, 0, size)
    return leaf.contiguous()


def _output_names(outputs: list[Tensor], layers: int) -> tuple[str, ...]:
    first = len(outputs) - 2 * layers
    plain = ["logits"] if first == 1 else [f"output_{i}" for i in range(first)]
    return (*plain, *cache_names(PRESENT, layers))


def _vocabulary(outputs: list[Tensor]) -> int:
    """The vocabulary size, from the last dimension of the logits."""
    return int(outputs[0].shape[-1])
