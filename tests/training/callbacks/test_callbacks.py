"""Tests of callbacks of trainers."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

import graphprune as gp
from graphprune.errors import PackageError, TrainingError
from graphprune.training.callbacks import lightning_callback
from tests.training.loops import Net, X, batches, loss, made


class Labelled(Net):
    """The network with its loss in the output, as trainers of transformers take it."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(x)
        return {"logits": logits} if labels is None else {"loss": loss(logits, (x, labels)), "logits": logits}


def trainer(net: Any, callback: Any, folder: Path, **options: Any) -> Trainer:
    samples: Any = [{"x": x, "labels": y} for batch in batches() for x, y in zip(*batch, strict=True)]
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8, learning_rate=1e-2, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    return Trainer(net, arguments, train_dataset=samples, callbacks=[callback])


def test_a_trainer_of_transformers_prunes_while_it_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = Labelled()
    pruner = gp.Pruner(net, (X,), sparsity=0.4, rounds=2, regularizer="group-lasso", strength=1.0)
    trainer(net, pruner.transformers_callback(), tmp_path, num_train_epochs=2, gradient_accumulation_steps=2).train()
    assert pruner.done and pruner.history[-1].sparsity == pytest.approx(0.4, abs=0.05)
    optimizer = pruner.optimizers[0]
    assert {*optimizer.state} == {*net.parameters()} and net.first.weight.shape[0] < 16
    plain: Any = Labelled()
    with pytest.raises(TrainingError, match="the trainer trains another Labelled"):
        trainer(plain, pruner.transformers_callback(), tmp_path, max_steps=1).train()


@pytest.mark.slow
def test_a_round_after_some_steps(tmp_path: Path) -> None:
    net: Any = Labelled()
    pruner = gp.Pruner(net, (X,), sparsity=0.2, rounds=1)
    callback = pruner.transformers_callback(every=2)
    trainer(net, callback, tmp_path, max_steps=2, bf16=True).train()
    assert pruner.done


class Callback:
    """The base class of a stand-in for Lightning: the package is not installed."""


def test_lightning_calls_the_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that makes the calls of Lightning, with its arguments, and no more of it."""
    if importlib.util.find_spec("lightning") is None and importlib.util.find_spec("pytorch_lightning") is None:
        with pytest.raises(PackageError, match="^Lightning is not installed: pip install lightning$"):
            made(recipe="magnitude")[2].lightning_callback()
    stand_in: Any = types.ModuleType("pytorch_lightning")
    stand_in.Callback = Callback
    stand_in.__spec__ = importlib.util.spec_from_loader("pytorch_lightning", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", stand_in)
    monkeypatch.setattr(lightning_callback, "PACKAGES", ("pytorch_lightning",))
    lightning_callback._kind.cache_clear()
    net, optimizer, _ = made()
    pruner = gp.Pruner(net, (X,), sparsity=0.3, rounds=1, regularizer="group-lasso", strength=1.0)
    callback, host = pruner.lightning_callback(every=2), types.SimpleNamespace(optimizers=[optimizer], global_step=0)
    lightning_callback._kind.cache_clear()
    callback.on_train_start(host, net)
    for step, batch in enumerate(batches(2)):
        optimizer.zero_grad()
        loss(net(batch[0]), batch).backward()
        before = net.first.weight.grad.clone()
        callback.on_before_optimizer_step(host, net, optimizer)
        assert not torch.equal(before, net.first.weight.grad)
        optimizer.step()
        host.global_step += 1
        callback.on_train_batch_end(host, net, None, batch, step)
    callback.on_train_epoch_end(host, net)
    assert pruner.done and {*optimizer.param_groups[0]["params"]} == {*net.parameters()}
