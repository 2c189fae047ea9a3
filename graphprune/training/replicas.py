"""Replicas of a module in several processes: shared batches, one plan, the weights of the first process."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from graphprune.errors import TrainingError
from graphprune.support.distributed import world_size

T = TypeVar("T")
MEBIBYTE = 2**20


def from_first(value: T) -> T:
    """Value of the first process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


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
                "prune under DistributedDataParallel, or prune first and shard the narrow module"
            )


def reducers(module: nn.Module) -> list[DistributedDataParallel]:
    """Wrappers of a module that average its gradients, the outermost first."""
    known: list[DistributedDataParallel] = []
    inner: Any = module
    while inner is not None:
        known += [inner] if isinstance(inner, DistributedDataParallel) else []
        inner = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
    return known


def rebuild(wrapper: DistributedDataParallel) -> None:
    """Let a wrapper average the gradients of the new parameters, with its former settings."""
    training = wrapper.training
    settings = {
        "device_ids": wrapper.device_ids,
        "output_device": wrapper.output_device,
        "dim": wrapper.dim,
        "broadcast_buffers": wrapper.broadcast_buffers,
        "process_group": wrapper.process_group,
        "bucket_cap_mb": wrapper.bucket_bytes_cap / MEBIBYTE,
        "find_unused_parameters": wrapper.find_unused_parameters,
        "gradient_as_bucket_view": wrapper.gradient_as_bucket_view,
        "static_graph": wrapper.static_graph,
        "mixed_precision": wrapper.mixed_precision,
    }
    type(wrapper).__init__(wrapper, wrapper.module, **settings)
    wrapper.train(training)  # type: ignore[no-untyped-call]
