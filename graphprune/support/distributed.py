"""Several processes that work on one job: each runs a share of the calibration batches, and sums are added up.

Started by ``torchrun``, which says in the environment how many there are. All of them walk through the same segments
and come to the same plan; only the first one writes the outcome.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from graphprune.errors import WorkspaceError, because


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """Join the other processes of ``torchrun`` for the block, if there are any."""
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, counted from 0."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def batches_of_process(batches: int) -> range:
    """The numbers of the batches that this process runs."""
    return range(rank(), batches, world_size())


@contextmanager
def _together() -> Iterator[None]:
    """Say in words that another process is gone."""
    try:
        yield
    except RuntimeError as fault:
        raise WorkspaceError(
            f"another process of this run has ended{because(fault)}; see what it said, and repeat the command, "
            "which goes on from what all of them have finished"
        ) from fault


def barrier() -> None:
    """Wait until all processes are here.

    Raises:
        WorkspaceError: if another one has ended.
    """
    if world_size() > 1:
        with _together():
            dist.barrier()


def all_reduce_min(number: int) -> int:
    """The smallest of what all processes give.

    Raises:
        WorkspaceError: if another one has ended.
    """
    if world_size() == 1:
        return int(number)
    found = torch.tensor(int(number))
    with _together():
        dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def all_reduce_sum(own: Sequence[Tensor] | None, tensors: int) -> list[Tensor] | None:
    """The sums over all processes of so many `tensors` of one or two dimensions in double precision; the same bits
    everywhere. Who has none (None) gets those of the others; None if nobody has any.

    Raises:
        WorkspaceError: if another process has ended.
    """
    if world_size() == 1:
        return None if own is None else list(own)
    with _together():
        return _summed(own, tensors)


def _summed(own: Sequence[Tensor] | None, tensors: int) -> list[Tensor] | None:
    sizes = torch.tensor([(*t.shape, 0)[:2] for t in own] if own else [(0, 0)] * tensors)
    dist.all_reduce(sizes, dist.ReduceOp.MAX)
    if not sizes.any():
        return None
    shapes = [[int(n) for n in row if n] for row in sizes]
    found = list(own) if own else [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    for tensor in found:
        dist.reduce(tensor, 0)
        dist.broadcast(tensor, 0)
    return found
