"""Tests of pruners in several processes."""

import os
import socket
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import graphprune as gp
from graphprune.errors import GraphpruneError
from tests.training.loops import Net, X, batches, loss

start: Any = import_module("torch.multiprocessing").spawn


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def process(rank: int, port: str, folder: str, work: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        work(rank, Path(folder))
    finally:
        dist.destroy_process_group()


def train_replicas(rank: int, folder: Path) -> None:
    """Train two replicas on different batches, with a round after each of two epochs."""
    torch.manual_seed(0)
    net: Any = Net()
    wrapper = DistributedDataParallel(net, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(wrapper.parameters(), 1e-2)
    own = batches()[rank::2]
    pruner = gp.Pruner(
        wrapper, (X,), recipe="taylor", refit="least-squares", sparsity=0.4, rounds=2, optimizer=optimizer, data=own,
        loss=loss, regularizer="group-lasso", samples=32,
    )  # fmt: skip
    for _ in range(2):
        for batch in own:
            (loss(wrapper(batch[0]), batch) + pruner.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
        pruner.step()
        assert wrapper.find_unused_parameters and {*optimizer.state} == {*net.parameters()}
    for batch in own:
        loss(wrapper(batch[0]), batch).backward()
    gradients = {f"grad.{name}": p.grad for name, p in net.named_parameters()}
    torch.save({**net.state_dict(), **gradients, "parameters": pruner.history[-1].after}, folder / f"{rank}.pt")


def refuse_shards(rank: int, folder: Path) -> None:
    """Try to prune a module that FSDP has sharded."""
    net: Any = Net()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    try:
        gp.Pruner(net, (X,), sparsity=0.4)
    except GraphpruneError as fault:
        (folder / f"{rank}.txt").write_text(str(fault))


@pytest.mark.slow
def test_all_replicas_cut_the_same_and_average_their_gradients(tmp_path: Path) -> None:
    start(process, (free_port(), str(tmp_path), train_replicas), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    buffers = ("norm.running_mean", "norm.running_var")  # of the batches of each process
    assert first.keys() == second.keys() and first["parameters"] < 0.7 * sum(p.numel() for p in Net().parameters())
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same or name in buffers, name
    assert first["grad.first.weight"].abs().sum() > 0


@pytest.mark.slow
def test_shards_are_refused_in_words(tmp_path: Path) -> None:
    start(process, (free_port(), str(tmp_path), refuse_shards), nprocs=2)
    for rank in range(2):
        message = (tmp_path / f"{rank}.txt").read_text()
        assert "is a piece of a parameter, as FSDP and tensor parallelism make them" in message


def test_a_module_without_a_wrapper_needs_none() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert gp.Pruner(net, (torch.randn(3, 4),), sparsity=0.3, rounds=1).step().written is not None
