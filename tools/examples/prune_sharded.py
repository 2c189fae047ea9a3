"""Train a CNN in pieces under FSDP, and prune it between epochs.

Run it as ``torchrun --nproc-per-node 2 -m tools.examples.prune_sharded``. Every process has the whole module besides
its pieces: a round cuts the whole one, which is then divided anew. Moments of the optimizer follow.
"""

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

import graphprune as gp
from tools.examples.small_cnn import Batch, SmallCNN, stripes

WHOLE = StateDictOptions(full_state_dict=True)


def divided(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """The module in pieces, and an optimizer of them with the state of the other one."""
    pieces = copy.deepcopy(model)
    fully_shard(pieces)  # yours: the layers to divide, the mesh, the precision
    own = AdamW(pieces.parameters(), optimizer.param_groups[0]["lr"])
    if optimizer.state:
        set_optimizer_state_dict(pieces, own, get_optimizer_state_dict(model, optimizer), options=WHOLE)
    return pieces, own


def collect(pieces: nn.Module, own: Optimizer, model: nn.Module, optimizer: Optimizer) -> None:
    """Give the whole module and its optimizer the weights and moments of the pieces."""
    model.load_state_dict(get_model_state_dict(pieces, options=WHOLE))
    set_optimizer_state_dict(model, optimizer, get_optimizer_state_dict(pieces, own, options=WHOLE))


def loss(logits: Tensor, batch: Batch) -> Tensor:
    """Yours, of an output and a batch."""
    return cross_entropy(logits, batch[1])


def train(rank: int, count: int, rounds: int = 3) -> tuple[nn.Module, Optimizer]:
    """Train on the batches of a process, with a round after each epoch but the last; return the whole module."""
    torch.manual_seed(0)
    model, data = SmallCNN(), stripes(512, seed=0)[rank::count]
    optimizer = AdamW(model.parameters(), 3e-3)
    pruner = gp.Pruner(
        model, (data[0][0],), recipe="taylor", sparsity=0.5, rounds=rounds, optimizer=optimizer, data=data, loss=loss
    )
    for _ in range(rounds + 1):
        pieces, own = divided(model, optimizer)
        for batch in data:
            loss(pieces(batch[0]), batch).backward()  # type: ignore[no-untyped-call]
            own.step()
            own.zero_grad()
        collect(pieces, own, model, optimizer)
        if not pruner.done:
            print(pruner.step() if rank == 0 else f"process {rank}: {pruner.step().after:,} parameters")
    return model, optimizer


if __name__ == "__main__":
    dist.init_process_group("gloo")
    train(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()
