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
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import graphprune as gp
from graphprune.errors import GraphpruneError
from graphprune.support.packages import accelerate
from tests.training.loops import Net, X, batches, loss
from tools.examples import prune_sharded
from tools.examples.small_cnn import SmallCNN

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


def differences(net: torch.nn.Module) -> list[str]:
    """Names of the parameters that differ between the processes."""
    names = []
    for name, parameter in net.named_parameters():
        both = [torch.zeros_like(parameter) for _ in range(2)]
        dist.all_gather(both, parameter.detach().contiguous())
        names += [] if torch.equal(*both) else [name]
    return names


def trained_alike(wrapper: Any, net: nn.Module, own: list[Any], **options: Any) -> list[str]:
    """Train with two rounds and after them; return the parameters in which replicas differ."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    pruner = gp.Pruner(wrapper, (X,), recipe="magnitude", sparsity=0.4, rounds=2, optimizer=optimizer, **options)
    different = []
    for _ in range(3):
        for batch in own:
            (loss(wrapper(batch[0]), batch) + pruner.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            different += differences(net)
        if not pruner.done:
            assert pruner.step().after < 1770
    return different


def wrap_in_other_ways(rank: int, folder: Path) -> None:
    """Train replicas that are compiled, have hooks and masks, or are in the autocast of accelerate."""
    own, nets = batches()[rank::2], [Net() for _ in range(4)]
    calls: list[str] = []
    none: Any = None  # the group of all processes

    def averaged(_: object, bucket: Any) -> Any:
        calls.append("reduced")
        return allreduce_hook(none, bucket)

    inside = DistributedDataParallel(nets[0], find_unused_parameters=True)
    compiled: Any = torch.compile(nets[1], backend="eager")
    outside = DistributedDataParallel(compiled, find_unused_parameters=True)
    hooked = DistributedDataParallel(nets[2], find_unused_parameters=True)
    handle = hooked.register_forward_hook(lambda *_: calls.append("forward"))
    hooked.register_comm_hook(None, averaged)
    session: Any = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    mixed = session.prepare(nets[3])
    assert trained_alike(torch.compile(inside, backend="eager"), nets[0], own) == []
    assert trained_alike(outside, nets[1], own) == []
    assert trained_alike(hooked, nets[2], own, masks="sigmoid") == []
    assert calls.count("forward") >= 6 and calls.count("reduced") >= 6  # in each of three epochs
    handle.remove()
    assert not hooked._forward_hooks
    assert trained_alike(mixed, nets[3], own) == [] and mixed(X).dtype == torch.float32
    (folder / f"{rank}.txt").write_text("alike")


def fail_in_one(rank: int, folder: Path) -> None:
    """Make rounds for which one process has no data, or a pending gradient; the other must not wait for it."""
    messages = []
    for own in (batches()[: 4 * (1 - rank)], batches()):
        net: Any = Net()
        wrapper = DistributedDataParallel(net)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        options: dict[str, Any] = {"sparsity": 0.4, "rounds": 2, "optimizer": optimizer, "data": own, "loss": loss}
        pruner = gp.Pruner(wrapper, (X,), recipe="taylor", **options)
        loss(wrapper(X), (X, torch.tensor([0, 1]))).backward()
        if rank == 0 or not own:
            optimizer.zero_grad()
        try:
            pruner.step()
        except GraphpruneError as fault:
            messages.append(str(fault))
        assert net.features == 12 and not pruner.history
    (folder / f"{rank}.txt").write_text("\n".join(messages))


def refuse_shards(rank: int, folder: Path) -> None:
    """Try to prune a module that FSDP has sharded."""
    net: Any = Net()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    try:
        gp.Pruner(net, (X,), sparsity=0.4)
    except GraphpruneError as fault:
        (folder / f"{rank}.txt").write_text(str(fault))


def prune_between_shards(rank: int, folder: Path) -> None:
    """Run the example, which divides the module anew after each round."""
    whole: Any = SmallCNN()
    model, optimizer = prune_sharded.train(rank, 2, rounds=2)
    moments = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}
    assert all(moments[name].shape == p.shape and moments[name].any() for name, p in model.named_parameters())
    assert sum(p.numel() for p in model.parameters()) < 0.55 * sum(p.numel() for p in whole.parameters())
    torch.save(
        {**dict(model.named_parameters()), **{f"moment.{name}": m for name, m in moments.items()}},
        folder / f"{rank}.pt",
    )


@pytest.mark.slow
def test_shards_are_collected_for_a_round_and_divided_anew(tmp_path: Path) -> None:
    start(process, (free_port(), str(tmp_path), prune_between_shards), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


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


@pytest.mark.slow
def test_replicas_in_other_wrappers_stay_alike(tmp_path: Path) -> None:
    start(process, (free_port(), str(tmp_path), wrap_in_other_ways), nprocs=2)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["alike", "alike"]


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_all(tmp_path: Path) -> None:
    start(process, (free_port(), str(tmp_path), fail_in_one), nprocs=2)
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in range(2))
    assert "the data has no batch" in second[0] and "of first.weight was not applied yet" in second[1]
    assert first[0].startswith("process 1 of this run cannot make the round (reason: the data has no batch")
    assert first[1].startswith("process 1 of this run cannot make the round (reason: the gradient of first.weight")


def test_a_module_without_a_wrapper_needs_none() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert gp.Pruner(net, (torch.randn(3, 4),), sparsity=0.3, rounds=1).step().written is not None
