"""State of a pruner as tensors: what its rounds retained, and the states of its regularizer and masks."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphprune.errors import PlanError, TrainingError, because
from graphprune.planning.plan import Rows

if TYPE_CHECKING:
    from graphprune.training.pruner import Pruner

VERSION = 1
ROUNDS, SOFTENED, NAME, PLAN, REDUCTIONS = "rounds", "softened", "fingerprint", "plan", "reductions"
NUMBERS = ("version", ROUNDS, SOFTENED)
SAVED = "pass what pruner.state_dict() returned"


def state(pruner: "Pruner") -> dict[str, Tensor]:
    """Tensors by name."""
    tensors = {
        "version": torch.tensor(VERSION),
        ROUNDS: torch.tensor(len(pruner.plans)),
        SOFTENED: torch.tensor(pruner.softened),
        NAME: torch.tensor(list(pruner.fingerprint.encode()), dtype=torch.uint8),
        REDUCTIONS: torch.tensor(pruner.targets.reductions, dtype=torch.float64),
    }
    for number, groups in enumerate(pruner.plans):
        tensors |= {f"{PLAN}.{number}.{name}": torch.tensor(rows) for name, rows in groups.items()}
    if pruner.regularizer is not None:
        numbers = pruner.regularizer.state().items()
        tensors |= {f"regularizer.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers}
    if pruner.masks is not None:
        tensors |= {f"masks.{name}": tensor.contiguous() for name, tensor in pruner.masks.state().items()}
    return tensors


def load(pruner: "Pruner", tensors: Mapping[str, Tensor]) -> None:
    """Bring a new pruner, and the initial module, to a state.

    Raises:
        TrainingError: if it is no state of a pruner of this module with these rounds, or rounds were made already.
    """
    _require_form(tensors)
    name = bytes(tensors[NAME].tolist()).decode(errors="replace")
    if pruner.history or name != pruner.fingerprint:
        raise TrainingError(
            f"the state is one of a module with fingerprint {name}, the initial module of this pruner has "
            f"{pruner.fingerprint}, after {len(pruner.history)} rounds; load it into a new pruner of the initial "
            "module, before the weights"
        )
    _require_same_rounds(pruner, tensors)
    _require_same_parts(pruner, tensors)
    rounds = range(int(tensors[ROUNDS]))
    with pruner.as_before_on_failure() if rounds else nullcontext():
        for number in rounds:
            _repeat(pruner, number, _rows(tensors, f"{PLAN}.{number}."))
        pruner.softened = int(tensors[SOFTENED])
        if pruner.regularizer is not None:
            pruner.regularizer.load_state({n: float(t) for n, t in _below(tensors, "regularizer.").items()})
        if pruner.masks is not None:
            pruner.masks.load_state(_below(tensors, "masks."))


def _repeat(pruner: "Pruner", number: int, rows: Mapping[str, Rows]) -> None:
    """Repeat the round of an index.

    Raises:
        TrainingError: if its rows do not fit the groups that the earlier rounds left.
    """
    try:
        pruner.repeat(rows)
    except PlanError as fault:
        raise TrainingError(
            f"round {number + 1} of the state does not fit the module{because(fault)}; {SAVED}"
        ) from fault


def _require_form(tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors have the names, types and dimensions of a state.

    Raises:
        TrainingError: if they have not.
    """
    if lacking := [name for name in (*NUMBERS, NAME) if name not in tensors]:
        raise TrainingError(f"this is no state of a pruner: it has no {', '.join(lacking)}; {SAVED}")
    for name, tensor in tensors.items():
        _require_numbers_in(name, tensor)
    made = int(tensors[ROUNDS])
    if int(tensors["version"]) > VERSION or made < 0 or not all(0 <= n < 256 for n in tensors[NAME].tolist()):
        raise TrainingError(
            f"this is a state of version {int(tensors['version'])} with {made} rounds, expected version {VERSION} at "
            f"most, and 0 rounds or more; update graphprune, or {SAVED}"
        )


def _require_numbers_in(name: str, tensor: object) -> None:
    """Check that an entry of a state is a tensor of the type and dimensions that its name says.

    Raises:
        TrainingError: if it is not.
    """
    dims, real = _dimensions(name), name == REDUCTIONS or name.startswith("regularizer.")
    if isinstance(tensor, Tensor) and (dims is None or _fits(tensor, dims, real)):
        return
    got = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)[:80]
    what = "numbers" if dims is None else f"{'real' if real else 'whole'} numbers of {dims} dimensions"
    raise TrainingError(f"this is no state of a pruner: {name} is {got}, expected a tensor of {what}; {SAVED}")


def _dimensions(name: str) -> int | None:
    """Number of dimensions of an entry; None if it may have any, as those of masks."""
    if name in NUMBERS or name.startswith("regularizer."):
        return 0
    if name in (NAME, REDUCTIONS):
        return 1
    return 2 if name.startswith(f"{PLAN}.") else None


def _fits(tensor: Tensor, dims: int, real: bool) -> bool:
    return tensor.dim() == dims and tensor.dtype != torch.bool and tensor.is_floating_point() == real


def _require_same_parts(pruner: "Pruner", tensors: Mapping[str, Tensor]) -> None:
    """Check that the saved run had the regularizer and the masks of a pruner, as far as these have a state.

    Raises:
        TrainingError: if it had not.
    """
    own = {f"regularizer.{name}" for name in (pruner.regularizer.state() if pruner.regularizer is not None else ())}
    saved = {name for name in tensors if name.startswith("regularizer.")}
    if own != saved:
        raise TrainingError(
            f"the state has {', '.join(sorted(saved)) or 'no numbers of a regularizer'}, this pruner expects "
            f"{', '.join(sorted(own)) or 'none'}; make the pruner with the regularizer of the saved run"
        )
    masked = any(name.startswith("masks.") for name in tensors)
    if masked != (pruner.masks is not None):
        raise TrainingError(
            f"the state is one of a run {'with' if masked else 'without'} masks, this pruner has "
            f"{'some' if pruner.masks is not None else 'none'}; make the pruner with the masks= of the saved run"
        )


def _require_same_rounds(pruner: "Pruner", tensors: Mapping[str, Tensor]) -> None:
    """Check that the rounds of the saved run remove as much as those of a pruner.

    A state of an earlier version does not say how much they remove; only the rounds that it made are counted then.

    Raises:
        TrainingError: if they do not.
    """
    saved, own = tensors[REDUCTIONS].tolist() if REDUCTIONS in tensors else None, pruner.targets.reductions
    number = int(tensors[ROUNDS]) if saved is None else len(saved)
    if number > len(own) or (saved is not None and number != len(own)):
        raise TrainingError(
            f"the state is one of a run of {number} rounds, this pruner has {len(own)}; make the pruner with the "
            f"rounds of the saved run, rounds={number}"
        )
    for index, (theirs, mine) in enumerate(zip(saved or (), own, strict=False), start=1):
        if not math.isclose(theirs, mine, rel_tol=1e-6):
            raise TrainingError(
                f"in the run of the state, {theirs:.4%} are removed after round {index} of {number}, with this pruner "
                f"{mine:.4%}; make the pruner with the schedule and the amount of the saved run"
            )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _rows(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Rows]:
    return {name: tuple(map(tuple, tensor.tolist())) for name, tensor in _below(tensors, prefix).items()}
