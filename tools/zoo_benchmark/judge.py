"""The law by which every tool is judged: the pruned model gives the numbers of the original with zeros.

Which entries of a parameter a tool kept is found by their values, which the zoo makes distinct within each parameter.
No structure is assumed and no tool is asked: the entries whose value still stands in the parameter of the same name
are kept, the others are zeroed in the original, and both models run on fresh inputs. Buffers stay as they are.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphprune.errors import VerificationError
from graphprune.execution import output_comparison, rounding
from tests import zoo

TOLERANCE = 1e-4  # of the typical value, in float32
SEED = 1  # of the fresh inputs and of whatever a model draws

Call = Callable[..., Any]
Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]


class NotComparable(Exception):  # noqa: N818 - a verdict
    """The pruned model cannot be judged by this law, for a reason that its message says."""


class Ambiguous(NotComparable):
    """Values are not distinct, so that nobody can tell which were kept."""


@dataclass(frozen=True)
class Verdict:
    """How far apart pruned and masked model are, and in which output; `reason` says why that is too far, or ""."""

    error: float
    reason: str

    @property
    def holds(self) -> bool:
        return not self.reason


def judge(original: nn.Module, kept: Mapping[str, Tensor], pruned: Call, inputs: Inputs) -> Verdict:
    """Compare `pruned`, whose parameters are `kept`, with `original`, which is masked in place.

    `kept` has an entry for every name of a parameter of the original.

    Raises:
        NotComparable: if a parameter is missing, or has values that the original's has not.
        Ambiguous: if it cannot be told which values were kept.
    """
    mask(original, kept)
    reference, got = run(original, inputs), run(pruned, inputs)
    if len(reference) != len(got):
        return Verdict(float("inf"), f"{len(got)} outputs instead of {len(reference)}")
    for i, (a, b) in enumerate(zip(reference, got, strict=True)):
        if a.shape != b.shape:
            return Verdict(float("inf"), f"output {i} has shape {tuple(b.shape)} instead of {tuple(a.shape)}")
    worst = max(map(difference, reference, got), default=0.0)
    if TOLERANCE < worst < float("inf"):
        worst = _without_rounding(original, pruned, inputs, reference, got)
    if worst <= TOLERANCE:
        return Verdict(worst, "")
    return Verdict(worst, f"differs from the masked original by {worst:.1e} of the typical value")


def _without_rounding(
    original: nn.Module, pruned: Call, inputs: Inputs, reference: list[Tensor], got: list[Tensor]
) -> float:
    """The greatest difference in double precision; where a model lacks it, beyond an estimate of the rounding."""
    try:
        models = [copy.deepcopy(model).double() for model in (original, pruned) if isinstance(model, nn.Module)]
        wide = pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs)
        first, second = (run(model, wide) for model in models)
        return max(map(difference, first, second), default=0.0)
    except Exception:  # a model may fix types
        noise = rounding.estimated(lambda: run(original, inputs), reference)
        return max(map(difference, reference, got, noise), default=0.0)


@torch.no_grad()
def run(model: Call, inputs: Inputs) -> list[Tensor]:
    """The floating-point outputs; what a model draws at random is the same in every run."""
    torch.manual_seed(SEED)
    return zoo.tensors(model(*inputs[0], **inputs[1]))


def difference(reference: Tensor, got: Tensor, noise: Tensor | None = None) -> float:
    """The greatest difference, relative to the typical value; infinite if a number is finite on one side alone."""
    try:
        return output_comparison.difference(reference, got, rounding=noise).relative
    except VerificationError:
        return float("inf")


def mask(original: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Zero every entry of a parameter whose value does not stand in `kept`, in place.

    A parameter with several names is masked under each of them by itself.

    Raises:
        NotComparable: see `judge`.
    """
    masked = {}
    for name, tensor in original.named_parameters(remove_duplicate=False):
        if name not in kept:
            raise NotComparable(f"the pruned model has no parameter {name}")
        masked[name] = nn.Parameter(tensor.detach() * kept_entries(name, tensor, kept[name]), requires_grad=False)
    for name, parameter in masked.items():
        path, _, leaf = name.rpartition(".")
        original.get_submodule(path)._parameters[leaf] = parameter


@torch.no_grad()
def kept_entries(name: str, original: Tensor, kept: Tensor) -> Tensor:
    """Ones where the value of an entry stands in `kept`, zeros elsewhere; shape of `original`.

    Raises:
        NotComparable: see `judge`.
    """
    if original.shape == kept.shape and torch.equal(original, kept.to(original)):
        return torch.ones_like(original)
    values = kept.detach().to(original).flatten().sort().values
    values = values[values != 0]  # a zero adds as little as what was removed
    if not len(values):
        return torch.zeros_like(original)
    ambiguous = Ambiguous(f"{name}: its values are not distinct, so which were kept cannot be told")
    if bool((values.diff() == 0).any()):
        raise ambiguous
    places = torch.searchsorted(values, original).clamp(max=len(values) - 1)
    matches = values[places] == original
    times = torch.bincount(places[matches], minlength=len(values))
    if bool((times == 0).any()):
        raise NotComparable(f"{name}: the pruned model has values that the original has not")
    if bool((times > 1).any()):
        raise ambiguous
    return matches.to(original)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter under every name."""
    return dict(model.named_parameters(remove_duplicate=False))
