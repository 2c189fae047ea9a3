"""Cut of inputs and outputs that may be narrower, such as a cache: what a cut program is given, and what it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.ir.program import Inputs
from graphprune.ir.weights import narrow

Cuts = Mapping[int, Mapping[int, Tensor]]


@dataclass(frozen=True)
class InterfaceCut:
    """Retained indices of the dimensions of inputs and outputs, by the position of the leaf."""

    inputs: Cuts = field(default_factory=dict)
    outputs: Cuts = field(default_factory=dict)

    def given(self, inputs: Inputs) -> Inputs:
        """Inputs of the cut program for those of the original."""
        args, kwargs = _narrowed((inputs[0], dict(inputs[1])), self.inputs)
        return args, kwargs

    def expected(self, outputs: Any) -> Any:
        """Outputs of the cut program for those of the original."""
        return _narrowed(outputs, self.outputs)


def _narrowed(value: Any, cuts: Cuts) -> Any:
    if not cuts:
        return value
    leaves, spec = pytree.tree_flatten(value)
    for at, dims in cuts.items():
        for dim, indices in sorted(dims.items(), reverse=True):  # an earlier one may depend on its original indices
            leaves[at] = narrow(leaves[at], dim, indices)
    return pytree.tree_unflatten(leaves, spec)


SAME = InterfaceCut()
