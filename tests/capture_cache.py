"""Captures of stock models, made once for each structure and call: torch.export takes over a second for each."""

import copy
import json
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

Export = Callable[..., ExportedProgram]

STOCK = ("torch.nn.", "transformers.")  # modules of which the code does not change
LIBRARIES = ("torch", "transformers")  # whose functions are constants
LABELS = {"name_or_path", "_name_or_path", "architectures", "transformers_version"}  # decide nothing
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
LISTS = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


class CaptureCache:
    """An export that captures a stock module once; every result has the tensors of its own module."""

    def __init__(self, export: Export) -> None:
        self.export, self.original = export, torch.export.export
        self.captured: dict[Hashable, ExportedProgram] = {}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any = None
    ) -> ExportedProgram:
        patched = torch.export.export is not self.original
        key = None if patched or shapes is not None else _key(module, args, kwargs)
        if key is None:
            return self.export(module, args, kwargs, shapes)
        if key not in self.captured:
            self.captured[key] = self.export(module, args, kwargs)
        return _with_tensors(self.captured[key], module, args, kwargs)


def _with_tensors(exported: ExportedProgram, module: nn.Module, args: Any, kwargs: Any) -> ExportedProgram:
    """The program with the parameters and buffers of another module of the same structure."""
    new = copy.copy(exported)
    tensors = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    own = {spec.target for spec in exported.graph_signature.input_specs if spec.kind is not InputKind.CONSTANT_TENSOR}
    new._state_dict = {name: tensors[name] for name in exported.state_dict}
    new._constants = {n: tensors[n] if n in own and n in tensors else old for n, old in exported.constants.items()}
    new._example_inputs = (args, dict(kwargs))
    return new


def _key(module: nn.Module, args: Any, kwargs: Any) -> Hashable:
    """All that decides a capture; None if some of it cannot be compared."""
    leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first = {id(tensor): name for name, tensor in reversed(tensors)}
    described = [_described(part) for part in module.modules()]
    calls = [_leaf(leaf) for leaf in leaves]
    shared = len({id(leaf) for leaf in leaves if isinstance(leaf, Tensor)}) < sum(isinstance(x, Tensor) for x in leaves)
    if None in described or None in calls or shared:
        return None
    names = tuple(name for name, _ in module.named_modules(remove_duplicate=False))
    weights = tuple((name, first[id(tensor)], _leaf(tensor)) for name, tensor in tensors)
    return names, tuple(described), weights, tuple(calls), str(structure), torch.get_default_dtype()


def _leaf(leaf: Any) -> Hashable:
    """A tensor without its values, or a plain value."""
    if isinstance(leaf, Tensor):
        strides = leaf.stride() if leaf.layout is torch.strided else None
        return type(leaf), leaf.shape, leaf.dtype, leaf.device, strides, leaf.requires_grad
    return (type(leaf), leaf) if isinstance(leaf, PLAIN) else None


def _described(part: nn.Module) -> Hashable:
    """Class and attributes of one module."""
    kind, attributes = type(part), {k: v for k, v in vars(part).items() if k not in LISTS | LABELS}
    if not f"{kind.__module__}.".startswith(STOCK):
        return None
    values = [(name, _value(value)) for name, value in sorted(attributes.items())]
    if any(value is None for _, value in values):
        return None
    return kind, kind.forward, tuple(values), tuple(sorted(part._non_persistent_buffers_set))


def _value(value: Any) -> Hashable:
    """A value as something to compare; None if it may hide what decides a capture."""
    if isinstance(value, PLAIN):
        return type(value), value
    if hasattr(value, "to_json_string"):
        fields = {k: v for k, v in json.loads(value.to_json_string(use_diff=False)).items() if k not in LABELS}
        return type(value), json.dumps(fields, sort_keys=True), getattr(value, "_attn_implementation", None)
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_value(item) for item in (value if isinstance(value, list | tuple) else sorted(value, key=str))]
        return None if None in parts else (type(value), tuple(parts))
    if isinstance(value, Mapping):
        items = [(_value(k), _value(v)) for k, v in value.items()]
        return None if any(None in item for item in items) else (type(value), tuple(items))
    known = callable(value) and str(getattr(value, "__module__", "")).startswith(LIBRARIES)
    return value if isinstance(value, type) or known else None
