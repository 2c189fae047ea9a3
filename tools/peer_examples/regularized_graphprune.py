"""Half of the channels of every layer, at once, after two epochs with a group lasso; then one more epoch."""

from typing import Any

import torch

import graphprune as gp


def run(model: Any, loader: Any, loss: Any) -> Any:
    """The narrower model."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pruner = gp.Pruner(
        model, ratio=0.5, rounds=1, optimizer=optimizer, data=loader, loss=loss, regularizer="group-lasso"
    )
    for epoch in range(3):
        model.train()
        for batch in loader:
            (loss(model(batch[0]), batch) + pruner.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
        if epoch == 1:
            pruner.step()
    return model
