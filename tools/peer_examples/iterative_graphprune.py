"""Half of the channels of every layer, in a round after each epoch of a training; then one more epoch."""

from typing import Any

import torch

import graphprune as gp


def run(model: Any, loader: Any, loss: Any) -> Any:
    """The narrower model."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pruner = gp.Pruner(model, ratio=0.5, rounds=2, schedule="linear", optimizer=optimizer, data=loader, loss=loss)
    for _ in range(3):
        model.train()
        for batch in loader:
            loss(model(batch[0]), batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        if not pruner.done:
            pruner.step()
    return model
