"""Catalogue of recipes: named pipelines as text, each a published method or a baseline."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from graphprune.passes.allocation.allocate import Allocate
from graphprune.passes.allocation.search import Search
from graphprune.passes.low_rank.allocate_ranks import BUDGETS
from graphprune.passes.reconstructions.refit import Refit
from graphprune.passes.scores.score import Score
from graphprune.pipeline import Pass, parse
from graphprune.registry import Registry
from graphprune.workflows.recipes.recipe_rules import flat

RECIPES: "Registry[str, Recipe]" = Registry("recipe")


@dataclass(frozen=True)
class Recipe:
    """Named method: its pipeline as text, and its source.

    `variants` are texts, by destination, for destinations that can hold more than narrower layers.
    """

    name: str
    description: str
    source: str
    text: str
    variants: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """Passes of the text, including those inside others."""
        return tuple(flat(parse(self.text)))

    @property
    def needs(self) -> tuple[str, ...]:
        """Resources in addition to the model: calibration data, gradients of a loss, an optional package."""
        return tuple(dict.fromkeys(name for step in self.passes for name in step.resources))

    @property
    def score(self) -> str:
        """Score of groups, or the first one that it searches among; empty if groups are not scored."""
        names = (step.by if isinstance(step, Score) else step.metrics[0]
                 for step in self.passes if isinstance(step, Score | Search))  # fmt: skip
        return next(names, "")

    @property
    def allocation(self) -> str:
        """Method that divides the reduction among groups; empty if there is none."""
        return next((step.by for step in self.passes if isinstance(step, Allocate)), "")

    @property
    def refit(self) -> str:
        """Reconstruction method of the refit, or ``none``."""
        return next((step.by for step in self.passes if isinstance(step, Refit)), "none")

    def text_for(self, options: Any) -> str:
        """Pipeline for the destination of a run.

        Variants apply to budgets that factors of a low rank can change, unless a module follows: it has no factors.
        """
        whole = options.sparsity is not None and options.budget in BUDGETS and not options.follow
        return self.variants.get(options.destination, self.text) if whole else self.text

    def to_dict(self) -> dict[str, Any]:
        """Recipe as JSON."""
        named = {name: getattr(self, name) for name in ("name", "description", "source", "text")}
        methods = {name: getattr(self, name) for name in ("needs", "score", "allocation", "refit")}
        return named | {"variants": dict(self.variants)} | methods


def add(*recipes: Recipe) -> None:
    """Register recipes by their names."""
    for recipe in recipes:
        RECIPES.register(recipe.name)(recipe)


#: Every layer after the first cut, towards equal parts of its outputs in the dense and in the pruned model.
WHOLE_REFIT = "refit{statistics=mixed,mix=0.5,residual=true,relative=true,others=true}"
BEST = (
    "analyze{experts=true} | calibrate | gradients{most=8} | score{by=growth-osscar} | allocate{by=balanced} | "
    f"select | rewrite | merge-experts | {WHOLE_REFIT} | batch-norm-statistics | last-norm | verify"
)
#: Embedding tables in groups of rows of low ranks; two fifths of the rest by lower ranks of layers,
#: refitted together with the cut layers.
BEST_FACTORED = (
    "analyze{experts=true} | calibrate | gradients{most=8} | score{by=growth-osscar} | group-embeddings | "
    "allocate{by=balanced,part=0.6} | select | rewrite | merge-experts | analyze | allocate-ranks{by=growth} | "
    f"{WHOLE_REFIT} | batch-norm-statistics | last-norm | verify | factorize"
)

add(
    Recipe(
        "auto",
        "the best known method for the data of the run: by gradients of a loss, by activations, or by weights alone",
        "this project",
        "analyze | calibrate | score{by=flap} | allocate{by=global} | select | rewrite | refit | "
        "batch-norm-statistics | verify",
    ),
    Recipe(
        "fasp",
        "column sums of |W| ||x||, least-squares refit of the remaining weights",
        "arXiv:2501.09412",
        "analyze | calibrate | score{by=fasp} | allocate | select | rewrite | refit | verify",
    ),
    Recipe(
        "groupreduce-fasp",
        "embedding tables in groups of rows of low ranks, weighted by frequency, for half of the reduction; then fasp",
        "arXiv:1806.06950 without its refinement, arXiv:2501.09412",
        "analyze | calibrate | group-embeddings{part=0.5,metric=none} | score{by=fasp} | allocate | select | rewrite | "
        "refit | verify | analyze | factorize",
    ),
    Recipe(
        "fasp-no-refit",
        "selection of fasp without a refit",
        "arXiv:2501.09412",
        "analyze | calibrate | score{by=fasp} | allocate | select | rewrite | verify",
    ),
    Recipe(
        "wanda-sp",
        "column means of |W| ||x||, whole heads and neurons, no refit",
        "arXiv:2312.11983",
        "analyze | calibrate | score{by=wanda-sp} | allocate | select | rewrite | verify",
    ),
    Recipe(
        "flap",
        "fluctuation of the output, one threshold for all layers, biases for what was removed",
        "arXiv:2312.11983",
        "analyze | calibrate | score{by=flap} | allocate{by=global} | select | rewrite | "
        "refit{by=bias,statistics=dense} | verify",
    ),
    Recipe(
        "comp",
        "whole layers for half of the reduction, then inputs that least affect the matrix condition, mask tuning",
        "arXiv:2501.15255, formula reconstructed",
        "analyze | calibrate | drop-blocks{by=comp,part=0.5,least=0} | analyze | calibrate | score{by=comp} | "
        "allocate | select | rewrite | refit{by=mask} | verify",
    ),
    Recipe(
        "transact",
        "norms of activations inside modules, in three rounds; least squares instead of training between them",
        "arXiv:2407.05690",
        "analyze | iterative{rounds=3,steps=[calibrate | score{by=transact} | allocate | "
        "select],refit=[refit]} | rewrite | refit | verify",
    ),
    Recipe(
        "liar",
        "selection of fasp, removed inputs interpolated from retained ones with an intercept",
        "arXiv:2407.13331, estimator reconstructed",
        "analyze | calibrate | score{by=fasp} | allocate | select | rewrite | refit{by=affine} | verify",
    ),
    Recipe(
        "osscar",
        "greedy order by the error after the best refit, swaps that lower it further, least squares",
        "arXiv:2403.12983",
        "analyze | calibrate | score{by=osscar} | allocate | select | local-search | rewrite | refit | verify",
    ),
    Recipe(
        "goa",
        "Gram matrices of producer and consumer, for heads too; both are refitted, one after the other",
        "arXiv:2407.19126",
        "analyze | calibrate | score{by=goa} | allocate | select | rewrite | "
        "refit{statistics=mixed,producers=true} | verify",
    ),
    Recipe(
        "goa-heads",
        "goa with heads ordered by the similarity of their attention matrices, as in the paper",
        "arXiv:2407.19126, order of heads reconstructed",
        "analyze | calibrate | score{by=goa-heads} | allocate | select | rewrite | "
        "refit{statistics=mixed,producers=true} | verify",
    ),
    Recipe(
        "prunenet",
        "neurons with the smallest share of the singular value spectrum, without data or a trained policy",
        "arXiv:2501.15296, score reconstructed",
        "analyze | score{by=prunenet} | allocate | select | rewrite | verify",
    ),
    Recipe(
        "spa",
        "relative magnitudes summed over coupled axes, OBS updates, which are least squares",
        "arXiv:2403.18955, after the abstract",
        "analyze | calibrate | score{by=spa} | allocate | select | rewrite | refit{by=obs} | verify",
    ),
    Recipe(
        "llm-pruner",
        "first-order Taylor terms of the loss, in all layers",
        "arXiv:2305.11627",
        "analyze | calibrate | gradients | score{by=taylor} | allocate | select | rewrite | verify",
    ),
    Recipe(
        "adapruner",
        "searches calibration data and Taylor terms together, by the loss of the plans on held-out data",
        "arXiv:2503.06184, formula reconstructed",
        "analyze | calibrate | search | allocate | select | rewrite | verify",
    ),
    Recipe(
        "kwon",
        "Fisher information of masks, the best split between heads and neurons, mask tuning",
        "arXiv:2204.09656",
        "analyze | calibrate | gradients | score{by=fisher} | allocate{by=kwon} | select | rewrite | "
        "refit{by=mask} | verify",
    ),
    Recipe(
        "besa",
        "ratio of each group learned by gradients, one layer at a time; ranked by Wanda's scores, as in the paper",
        "arXiv:2402.16880, structured port reconstructed",
        "analyze | calibrate | score{by=wanda-sp} | allocate{by=besa} | select | rewrite | verify",
    ),
    Recipe(
        "bypass",
        "ratio of each group learned from forward passes alone, by policy gradient; ranked by Wanda's scores",
        "arXiv:2406.10576, structured port reconstructed",
        "analyze | calibrate | score{by=wanda-sp} | allocate{by=policy} | select | rewrite | verify",
    ),
    Recipe(
        "taylor",
        "first-order Taylor terms of the loss, summed for every layer of an index, one threshold for all layers",
        "arXiv:1906.10771, with mean gradients",
        "analyze | calibrate | gradients | score{by=taylor-vector} | allocate{by=pooled} | select | rewrite | verify",
    ),
    Recipe(
        "taylor-second",
        "second-order Taylor terms of the loss by squared gradients, one threshold for all layers",
        "after arXiv:1906.10771 and arXiv:2305.11627",
        "analyze | calibrate | gradients | score{by=taylor-second} | allocate{by=pooled} | select | rewrite | verify",
    ),
    Recipe(
        "network-slimming",
        "scales of batch norms, one threshold for all layers",
        "arXiv:1708.06519",
        "analyze | score{by=bn-scale} | allocate{by=pooled} | select | rewrite | verify",
    ),
    Recipe(
        "lamp",
        "squared weights relative to those of all larger indices, one threshold for all layers",
        "arXiv:2010.07611, structured port",
        "analyze | score{by=lamp} | allocate{by=pooled} | select | rewrite | verify",
    ),
    Recipe(
        "fpgm",
        "filters near the geometric median of their layer, the same share of every layer",
        "arXiv:1811.00250",
        "analyze | score{by=fpgm} | allocate | select | rewrite | verify",
    ),
    Recipe(
        "hrank",
        "channels with feature maps of low rank, the same share of every layer",
        "arXiv:2002.10179",
        "analyze | calibrate | score{by=hrank} | allocate | select | rewrite | verify",
    ),
    Recipe(
        "best",
        "growth of the loss, equal at the margin, also of embedding tables; two fifths of the rest by lower ranks; "
        "refitted to the dense residual stream, and the last norm to the dense predictions",
        "this project",
        BEST,
        {"free": BEST_FACTORED},
    ),
    Recipe(
        "sleb",
        "whole blocks without which the loss is lowest, step by step",
        "arXiv:2402.09025",
        "analyze | calibrate | drop-blocks{by=sleb}",
    ),
    Recipe(
        "shortgpt",
        "whole blocks that rotate the residual stream least",
        "arXiv:2403.03853",
        "analyze | calibrate | drop-blocks{by=shortgpt}",
    ),
    Recipe(
        "mpifa",
        "factors of a low rank as rows and coefficients, fitted one by one to a mix of dense and factored inputs",
        "arXiv:2501.19090",
        "analyze | allocate-ranks | calibrate | factorize",
    ),
    Recipe(
        "slicegpt",
        "residual streams rotated to their principal axes and cut, with linear layers from one to the next",
        "arXiv:2401.15024",
        "analyze{exact_only=false} | fuse-norms | calibrate | rotate | allocate | select | rewrite | verify",
    ),
    Recipe(
        "slicegpt-whole",
        "slicegpt with one rotation for all blocks, which needs no linear layers between them",
        "after arXiv:2401.15024",
        "analyze{exact_only=false} | fuse-norms{shortcuts=false} | calibrate | rotate | allocate | select | "
        "rewrite | verify",
    ),
    Recipe(
        "reap",
        "whole experts of mixtures, by the router's weight times the norm of their outputs",
        "arXiv:2510.13999",
        "analyze{experts=true} | calibrate | measure-routing | score{by=reap} | allocate | select | rewrite | verify",
    ),
    Recipe(
        "reap-merged",
        "reap, then the retained experts refitted to the outputs of the dense mixture by least squares",
        "arXiv:2510.13999 and this project",
        "analyze{experts=true} | calibrate | measure-routing | score{by=reap} | allocate | select | rewrite | "
        "merge-experts | verify",
    ),
    Recipe(
        "read-me",
        "experimental: dense feed-forward layers split into experts by co-activation, with linear routers, untrained",
        "after arXiv:2410.19123 and arXiv:2110.01786, by least squares",
        "analyze | calibrate | split-experts",
    ),
    Recipe(
        "magnitude",
        "the norm of all coupled weights",
        "baseline",
        "analyze | score{by=magnitude} | allocate | select | rewrite | verify",
    ),
    Recipe(
        "random",
        "chance",
        "baseline",
        "analyze | score{by=random} | allocate | select | rewrite | verify",
    ),
)
