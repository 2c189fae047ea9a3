"""Distributed runs: each process runs a share of the calibration batches, and sums are reduced over all.

They are started by ``torchrun``. All processes run the same segments and compute the same plan; only the first one
writes the output.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from graphprune.errors import WorkspaceError, because, reason_of

LIBRARY = "gloo"  # in the errors of collective operations on processors, which have no class of their own


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
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, from 0."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def batches_of_process(batches: int) -> range:
    """Indices of the batches that this process runs."""
    return range(rank(), batches, world_size())


@contextmanager
def failure_reported(only_of_others: bool = False) -> Iterator[None]:
    """Convert the error of a collective operation to a message that another process has ended.

    With `only_of_others`, the block does more than that: an error of something else is raised as it is.

    Raises:
        WorkspaceError: if another process has ended.
    """
    try:
        yield
    except RuntimeError as fault:
        if only_of_others and not (isinstance(fault, dist.DistError) or LIBRARY in reason_of(fault)):
            raise
        raise WorkspaceError(
            f"another process of this run has ended{because(fault)}; read its output, and repeat the command, "
            "which continues after the steps that all of them have finished"
        ) from fault


def barrier() -> None:
    """Wait until all processes reach this call.

    Raises:
        WorkspaceError: if another process has ended.
    """
    if world_size() > 1:
        with failure_reported():
            dist.barrier()


def all_reduce_min(number: int) -> int:
    """Minimum of the numbers of all processes.

    Raises:
        WorkspaceError: if another process has ended.
    """
    if world_size() == 1:
        return int(number)
    minimum = torch.tensor(int(number))
    with failure_reported():
        dist.all_reduce(minimum, dist.ReduceOp.MIN)
    return int(minimum)


def all_reduce_sum(own: Sequence[Tensor] | None, tensors: int) -> list[Tensor] | None:
    """Sums over all processes of several `tensors` of one or two dimensions in double precision.

    All processes get the same bits. A process without tensors (None) gets the sums of the others; the result is None if
    no process has any.

    Raises:
        WorkspaceError: if another process has ended.
    """
    if world_size() == 1:
        return None if own is None else list(own)
    with failure_reported():
        return _summed(own, tensors)


def _summed(own: Sequence[Tensor] | None, tensors: int) -> list[Tensor] | None:
    sizes = torch.tensor([(*t.shape, 0)[:2] for t in own] if own else [(0, 0)] * tensors)
    dist.all_reduce(sizes, dist.ReduceOp.MAX)
    if not sizes.any():
        return None
    shapes = [[int(n) for n in row if n] for row in sizes]
    totals = list(own) if own else [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    for tensor in totals:
        dist.reduce(tensor, 0)
        dist.broadcast(tensor, 0)
    return totals
