"""Replicas of a module in several processes: shared batches, one plan, the weights of the first process."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from graphprune.errors import TrainingError, because, reason_of
from graphprune.execution.wrappers import nested
from graphprune.support.distributed import world_size

T = TypeVar("T")
MEBIBYTE = 2**20
REDUCER_HOOKS = ("_comm_hooks", "_accum_grad_hooks")


def from_first(value: T) -> T:
    """Value of the first process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def agreed(work: Callable[[], T]) -> T:
    """Result of work that depends on this process alone, if it succeeds in all processes.

    Where one fails, all fail: others would wait for it in the next exchange.

    Raises:
        TrainingError: if it fails in another process.
    """
    if world_size() == 1:
        return work()
    fault: Exception | None = None
    try:
        value = work()
    except Exception as caught:  # data of users may raise anything
        fault = caught
    reasons: list[str | None] = [None] * world_size()
    try:
        dist.all_gather_object(reasons, None if fault is None else reason_of(fault))
    except RuntimeError as ended:
        raise fault or TrainingError(
            f"another process of this run has ended{because(ended)}; read its output"
        ) from ended
    if fault is not None:
        raise fault
    for number, reason in enumerate(reasons):
        if reason is not None:
            raise TrainingError(f"process {number} of this run cannot make the round (reason: {reason})")
    return value


def gathered(values: Sequence[T], device: torch.device | str = "cpu") -> list[T]:
    """Values of all processes, alternating, on this device: every process gets the same list."""
    if world_size() == 1:
        return list(values)
    of_process: list[Any] = [None] * world_size()
    dist.all_gather_object(of_process, pytree.tree_map_only(Tensor, lambda t: t.cpu(), list(values)))
    least = min(map(len, of_process))
    mixed = [part[i] for i in range(least) for part in of_process]
    moved: list[T] = pytree.tree_map_only(Tensor, lambda t: t.to(device), mixed)
    return moved


@torch.no_grad()
def synchronize(module: nn.Module) -> None:
    """Give all replicas the parameters and buffers of the first process, which may differ by rounding or by norms."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


def require_whole(module: nn.Module) -> None:
    """Check that no parameter is a piece of one.

    Raises:
        TrainingError: if one is, as FSDP makes them.
    """
    for name, parameter in module.named_parameters():
        if isinstance(parameter, DTensor) or type(parameter).__name__ == "FlatParameter":
            raise TrainingError(
                f"{name} is a piece of a parameter, as FSDP and tensor parallelism make them; a cut needs whole ones: "
                "give the pruner the whole module, collect the pieces in it before a round, and shard it anew after it "
                "(tools/examples/prune_sharded.py), or prune under DistributedDataParallel"
            )


def reducers(module: nn.Module) -> list[DistributedDataParallel]:
    """Wrappers of a module that average its gradients, the outermost first."""
    return [wrapper for wrapper in nested(module) if isinstance(wrapper, DistributedDataParallel)]


def rebuild(wrapper: DistributedDataParallel) -> None:
    """Let a wrapper average the gradients of the new parameters, with its former settings and hooks."""
    before = dict(vars(wrapper))
    known = inspect.signature(DistributedDataParallel.__init__).parameters.keys() - {"device_mesh"}  # of process_group
    settings = {name: value for name, value in before.items() if name in known}
    settings["bucket_cap_mb"] = wrapper.bucket_bytes_cap / MEBIBYTE
    type(wrapper).__init__(wrapper, wrapper.module, **settings)
    users = {name: value for name, value in before.items() if "_hooks" in name and name not in REDUCER_HOOKS}
    vars(wrapper).update(users, training=before["training"])
    for hook, state in before["_comm_hooks"]:
        wrapper.register_comm_hook(state, hook)
