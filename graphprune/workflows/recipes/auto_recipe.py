"""Recipe ``auto``: the best known method for the data of a run."""

from typing import Any

from graphprune.workflows.recipes.catalogue import BEST, Recipe

AUTO = "auto"
RESTORE = "rewrite | refit | batch-norm-statistics | verify"
WITH_LOSS = f"analyze | calibrate | gradients | score{{by=k-obs}} | allocate{{by=marginal}} | select | {RESTORE}"
WITHOUT_LOSS = f"analyze | calibrate | score{{by=flap}} | allocate{{by=global}} | select | {RESTORE}"
ALIKE = f"analyze | calibrate | score{{by=fasp}} | allocate | select | {RESTORE}"
WITHOUT_DATA = "analyze | score{by=magnitude} | allocate | select | rewrite | verify"
NO_DATA = (
    "recipe auto has no data: it removes what has the smallest weights, and refits nothing, which costs most of the "
    "accuracy; pass data, batches of inputs, and a loss for gradients"
)


def for_run(options: Any) -> Recipe:
    """Recipe for a run, by its data."""
    if getattr(options, "calibration", None):
        return _recipe("growth of the loss, refitted to the dense residual stream", BEST)
    if getattr(options, "data", None) is None and not getattr(options, "batches", ()):
        return _recipe("the norm of all coupled weights", WITHOUT_DATA)
    if getattr(options, "loss", None) is not None:
        return _recipe("growth of the loss, least squares, new statistics of batch norms", WITH_LOSS)
    if getattr(options, "sparsity", None) is None:  # groups are cut alike: no threshold is needed
        return _recipe("norms of weights and activations, least squares, new statistics of batch norms", ALIKE)
    return _recipe("fluctuation of the output, least squares, new statistics of batch norms", WITHOUT_LOSS)


def _recipe(description: str, text: str) -> Recipe:
    return Recipe(AUTO, description, "this project", text)
