"""A share of the channels of each layer of its own, at once, by magnitude."""

from typing import Any

import torch_pruning as tp


def run(model: Any, loader: Any, loss: Any) -> Any:
    """The narrower model."""
    example = next(iter(loader))[0]
    shares = {model.blocks[0].conv1: 0.25, model.blocks[1].conv1: 0.75, model.blocks[2].conv1: 0.75}
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=importance,
        pruning_ratio=0.5,
        pruning_ratio_dict=shares,
        ignored_layers=[model.head],
    )
    pruner.step()
    return model
