"""The recipes: named pipelines, each a published method or a baseline."""

from dataclasses import replace

from graphprune.passes.allocation.search import TAYLOR
from graphprune.passes.reconstructions.finetune import Tune
from graphprune.registry import Registry
from graphprune.workflows.recipe import Recipe

RECIPES: Registry[str, Recipe] = Registry("recipe", "`graphprune recipes` lists them")


def add(*recipes: Recipe) -> None:
    """Register recipes by their names."""
    for recipe in recipes:
        RECIPES.register(recipe.name)(recipe)


BEST = Recipe(
    "best",
    "growth of the loss, equal at the margin; a quarter by lower ranks; refitted to the dense residual stream",
    "this project",
    "k-obs",
    "marginal",
    "least-squares",
    "mixed",
    propagates=True,
    lowers=0.25,
)

add(
    Recipe(
        "fasp",
        "column sums of |W| ||x||, least squares on what is left",
        "arXiv:2501.09412",
        "fasp",
        refit="least-squares",
    ),
    Recipe("fasp-no-refit", "the same selection, nothing refitted", "arXiv:2501.09412", "fasp"),
    Recipe("wanda-sp", "column means of |W| ||x||, whole heads and neurons, no refit", "arXiv:2312.11983", "wanda-sp"),
    Recipe(
        "flap",
        "fluctuation of the output, one threshold for all layers, biases for what was removed",
        "arXiv:2312.11983",
        "flap",
        "global",
        "bias",
        "dense",
    ),
    Recipe(
        "comp",
        "whole layers for half of what is to go, then inputs the matrix condition does not feel, mask tuning",
        "arXiv:2501.15255, formula reconstructed",
        "comp",
        refit="mask",
        drops="comp",
        coarse=0.5,
    ),
    Recipe(
        "transact",
        "norms of activations inside modules, in three shots; least squares in the place of the training between",
        "arXiv:2407.05690",
        "transact",
        refit="least-squares",
        shots=3,
    ),
    Recipe(
        "liar",
        "FASP's selection, removed inputs interpolated from kept ones with an intercept",
        "arXiv:2407.13331, estimator reconstructed",
        "fasp",
        refit="affine",
    ),
    Recipe(
        "osscar",
        "greedy order by the error after the best refit, swaps that lower it further, least squares",
        "arXiv:2403.12983",
        "osscar",
        refit="least-squares",
        swaps=16,
    ),
    Recipe(
        "goa",
        "second moment of producer and consumer, heads too; both are refitted, one after the other",
        "arXiv:2407.19126",
        "goa",
        refit="least-squares",
        statistics="mixed",
        producers=True,
    ),
    Recipe(
        "goa-heads",
        "the same, heads by the likeness of their attention maps, as in the paper",
        "arXiv:2407.19126, order of heads reconstructed",
        "goa-heads",
        refit="least-squares",
        statistics="mixed",
        producers=True,
    ),
    Recipe(
        "prunenet",
        "neurons that hold least of the spectrum of singular values, without data or a trained policy",
        "arXiv:2501.15296, score reconstructed",
        "prunenet",
    ),
    Recipe(
        "spa",
        "relative magnitudes summed over coupled places, OBS updates, which are least squares",
        "arXiv:2403.18955, after the abstract",
        "spa",
        refit="obs",
    ),
    Recipe("llm-pruner", "first-order Taylor terms of the loss, in all layers", "arXiv:2305.11627", "taylor"),
    Recipe(
        "adapruner",
        "searches calibration data and Taylor terms together, by what the plans do to held-out data",
        "arXiv:2503.06184, formula reconstructed",
        "taylor",
        metrics=TAYLOR,
    ),
    Recipe(
        "kwon",
        "Fisher information of masks, the best split between heads and neurons, mask tuning",
        "arXiv:2204.09656",
        "fisher",
        "kwon",
        "mask",
    ),
    Recipe(
        "besa",
        "how much of each group goes is learned by gradients, a layer at a time; Wanda's scores rank, as in the paper",
        "arXiv:2402.16880, structured port reconstructed",
        "wanda-sp",
        "besa",
    ),
    Recipe(
        "bypass",
        "how much of each group goes is learned from forward passes alone, by policy gradient; Wanda's scores rank",
        "arXiv:2406.10576, structured port reconstructed",
        "wanda-sp",
        "policy",
    ),
    BEST,
    replace(
        BEST,
        name="best-tuned",
        description="best, then norms, biases and updates of low rank trained towards the dense model",
        tune=Tune(steps=100, rate=1e-3, rank=16, aim="dense"),
    ),
    Recipe("sleb", "whole blocks without which the loss is lowest, step by step", "arXiv:2402.09025", drops="sleb"),
    Recipe("shortgpt", "whole blocks that turn the stream least", "arXiv:2403.03853", drops="shortgpt"),
    Recipe(
        "mpifa",
        "factors of a low rank as rows and coefficients, fitted map by map to a mixture of dense and factored inputs",
        "arXiv:2501.19090",
        factors=True,
    ),
    Recipe(
        "slicegpt",
        "residual streams turned to their principal axes, with maps from one to the next, and cut",
        "arXiv:2401.15024",
        turns="stretches",
    ),
    Recipe(
        "slicegpt-whole",
        "the same with one rotation for all blocks, which takes no maps between them",
        "after arXiv:2401.15024",
        turns="whole",
    ),
    Recipe("magnitude", "the norm of all coupled weights", "baseline", "magnitude"),
    Recipe("random", "chance", "baseline", "random"),
)
