"""Half of the channels of every layer, in a round after each epoch of a training; then one more epoch."""

from typing import Any

import torch
import torch_pruning as tp


def run(model: Any, loader: Any, loss: Any) -> Any:
    """The narrower model."""
    example = next(iter(loader))[0]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(
        model, example, importance=importance, pruning_ratio=0.5, iterative_steps=2, ignored_layers=[model.head]
    )
    for epoch in range(3):
        model.train()
        for batch in loader:
            loss(model(batch[0]), batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        if epoch < 2:
            pruner.step()
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)  # moments are lost
    return model
