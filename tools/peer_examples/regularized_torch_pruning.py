"""Half of the channels of every layer, at once, after two epochs with a group lasso; then one more epoch."""

from typing import Any

import torch
import torch_pruning as tp


def run(model: Any, loader: Any, loss: Any) -> Any:
    """The narrower model."""
    example = next(iter(loader))[0]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="max")
    pruner = tp.pruner.GroupNormPruner(
        model, example, importance=importance, pruning_ratio=0.5, ignored_layers=[model.head]
    )
    for epoch in range(3):
        model.train()
        pruner.update_regularizer()
        for batch in loader:
            loss(model(batch[0]), batch).backward()
            if epoch < 2:
                pruner.regularize(model)
            optimizer.step()
            optimizer.zero_grad()
        if epoch == 1:
            pruner.step()
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)  # moments are lost
    return model
