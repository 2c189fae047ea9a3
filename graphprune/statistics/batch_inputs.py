"""Inputs of a module in a user's batch, by the signature of its forward."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphprune.errors import CalibrationError, because
from graphprune.ir.printer import type_text
from graphprune.ir.program import Inputs, Program

FORWARD = "forward=lambda model, batch: model(...)"
NUMBERS = "biufc"  # kinds of arrays that tensors can hold
LABELS = frozenset({"label", "labels", "label_ids", "target", "targets"})
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Forward:
    """Parameters of a module's forward, by which a batch is divided into inputs and labels.

    A dict gives the keywords that the forward names; labels only where it names them. Of a tuple or list, the leading
    parts that the forward can take are inputs and the last one is the labels, unless the forward requires it.
    """

    signature: inspect.Signature

    @classmethod
    def of(cls, module: nn.Module | Program) -> "Forward":
        """Parameters of a module, or the inputs of a program."""
        if isinstance(module, nn.Module):
            return cls(inspect.signature(module.forward))
        named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in module.inputs[1]]
        places = [inspect.Parameter(name, _POSITIONAL[1]) for name in _positional_names(module)]
        return cls(inspect.Signature([*places, *named]))

    def inputs(self, batch: Any) -> Inputs:
        """Arguments and keywords for a batch.

        Raises:
            CalibrationError: if the batch has another form, or it is unclear which of its parts are inputs.
        """
        if isinstance(batch, Mapping):
            return (), self._keywords(batch)
        if isinstance(batch, tuple) and hasattr(batch, "_asdict") and self._named(batch._asdict()):
            return (), self._keywords(batch._asdict())
        if isinstance(batch, list | tuple) and batch:
            return self._parts(batch)
        if isinstance(batch, Tensor):
            return (batch,), {}
        raise self._unclear(batch, "is no tensor, tuple, list or dict")

    def fitting(self, inputs: Inputs, batch: Any) -> Inputs:
        """The inputs of a batch, if the forward can be called with them.

        Raises:
            CalibrationError: if it cannot.
        """
        try:
            self.signature.bind(*inputs[0], **inputs[1])
        except TypeError as fault:
            raise self._unclear(batch, f"does not fit the forward{because(fault)}") from fault
        return inputs

    def arranged(self, inputs: Inputs, example: Inputs) -> Inputs:
        """Inputs passed by position and keyword as those of an example; keywords that it lacks are omitted.

        Raises:
            CalibrationError: if an input of the example is missing.
        """
        names = list(self.signature.bind_partial(*example[0]).arguments)
        values = {**self.signature.bind_partial(*inputs[0], **inputs[1]).arguments}
        if len(names) != len(example[0]):  # *args
            return inputs
        if missing := [name for name in (*names, *example[1]) if name not in values]:
            raise CalibrationError(
                f"a batch gives {', '.join(values) or 'no input'}, and the example inputs (args, kwargs) have "
                f"{missing[0]}, too; omit args and kwargs, so that the first batch is the example, or pass {FORWARD}"
            )
        return tuple(values[name] for name in names), {name: values[name] for name in example[1]}

    def _keywords(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords among the entries of a batch."""
        if named := self._named(batch):
            return named
        if any(p.kind is p.VAR_KEYWORD for p in self.signature.parameters.values()):
            return {str(key): value for key, value in batch.items() if key not in LABELS}
        raise self._unclear(batch, "has no entry that is a parameter of the forward")

    def _named(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        fixed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = [name for name, p in self.signature.parameters.items() if p.kind in fixed]
        return {name: batch[name] for name in names if name in batch}

    def _parts(self, batch: Sequence[Any]) -> Inputs:
        """Inputs among the parts of a batch; inner tuples, lists and dicts hold several inputs."""
        first = batch[0]
        if isinstance(first, Mapping):
            return (), self._keywords(first)
        if isinstance(first, list | tuple) and self._binds(first):
            return tuple(first), {}
        return tuple(batch[: self._count(batch)]), {}

    def _binds(self, parts: Sequence[Any]) -> bool:
        try:
            self.signature.bind(*parts)
        except TypeError:
            return False
        return True

    def _count(self, batch: Sequence[Any]) -> int:
        """Number of leading parts that are inputs."""
        parameters = [p for p in self.signature.parameters.values() if p.kind in _POSITIONAL and p.name not in LABELS]
        required = sum(p.default is p.empty for p in parameters)
        most = len(parameters) if not self._takes_any else len(batch)
        if len(batch) <= required:
            return len(batch)
        if len(batch) <= 2:
            return max(1, required)
        if required == most or required == len(batch) - 1:
            return required
        takes = "any number of them" if self._takes_any else f"{required} to {most}"
        raise self._unclear(batch, f"has {len(batch)} parts, of which the forward takes {takes}")

    @property
    def _takes_any(self) -> bool:
        return any(p.kind is p.VAR_POSITIONAL for p in self.signature.parameters.values())

    def _unclear(self, batch: Any, why: str) -> CalibrationError:
        return CalibrationError(
            f"the batch {described(batch)} {why}; expected the inputs of forward{self._text} as a tensor, a tuple "
            f"(inputs, labels) or a dict, or a function that calls the model: {FORWARD}"
        )

    @property
    def _text(self) -> str:
        """Names of the parameters, in parentheses."""
        parameters = [p.replace(annotation=p.empty) for p in self.signature.parameters.values()]
        shown = [str(p) for p in parameters[:8]] + ["..."] * (len(parameters) > 8)
        return f"({', '.join(shown)})"


def _positional_names(program: Program) -> list[str]:
    """Names of the positional inputs of a program, those of its placeholders where an input is one tensor."""
    nodes = iter([node.name for node in program.graph.nodes if node.op == "placeholder"])
    names = list[str]()
    for i, value in enumerate(program.inputs[0]):
        own = list(islice(nodes, len(pytree.tree_leaves(value))))
        names.append(own[0] if len(own) == 1 and own[0] not in program.inputs[1] else f"input_{i}")
    return names


def described(batch: Any) -> str:
    """Form of a batch, such as ``(float32[8, 3, 32, 32], int64[8] from 0 to 9)``."""
    if isinstance(batch, Tensor):
        return type_text(batch) + _range(batch)
    if isinstance(batch, Mapping):
        return f"{{{', '.join(f'{key}: {described(value)}' for key, value in batch.items())}}}"
    if isinstance(batch, list | tuple):
        shown = [described(part) for part in batch[:6]] + ["..."] * (len(batch) > 6)
        return f"({', '.join(shown)})" if isinstance(batch, tuple) else f"[{', '.join(shown)}]"
    if isinstance(batch, np.ndarray):
        return f"an array of {batch.dtype}"
    name = type(batch).__name__
    return "None" if batch is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def form(batch: Any) -> Any:
    """Form of a batch that all batches share: the types of its parts, and the kinds and dimensions of its tensors."""
    if isinstance(batch, Tensor):
        return batch.dtype, batch.dim()
    if isinstance(batch, Mapping):
        return {str(key): form(value) for key, value in batch.items()}
    return [form(part) for part in batch] if isinstance(batch, list | tuple) else type(batch)


def moved(batch: Any, device: torch.device | str) -> Any:
    """Batch with its tensors on a device, and arrays of numbers as tensors; other objects follow by a method `to`."""
    if isinstance(batch, Mapping) and not isinstance(batch, dict) and not hasattr(batch, "to"):
        return {key: moved(value, device) for key, value in batch.items()}
    return pytree.tree_map(lambda leaf: _moved(leaf, device), batch)


def _moved(leaf: Any, device: torch.device | str) -> Any:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in NUMBERS:
        leaf = torch.tensor(leaf)  # a copy, as arrays may be read-only
    return leaf.to(device) if hasattr(leaf, "to") else leaf


def leaves(batch: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a batch, with their key in a dict ("" elsewhere)."""
    if isinstance(batch, Tensor):
        yield "", batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from ((str(key), tensor) for _, tensor in leaves(value))
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from leaves(part)


def size(batch: Any) -> int:
    """Number of samples in a batch: the first dimension of its first tensor."""
    return next((len(tensor) for _, tensor in leaves(batch) if tensor.dim()), 1)


def _range(value: Tensor) -> str:
    """Range of whole numbers, which may be labels."""
    if value.is_floating_point() or value.is_complex() or value.dtype is torch.bool or not value.numel():
        return ""
    return f" from {int(value.min())} to {int(value.max())}"
