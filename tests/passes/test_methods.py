"""Every score and every refit through the whole pipeline, on a small decoder, encoder and convolutional network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.errors import PlanError
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Gradients
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.reconstructions.refit import Refit
from graphprune.passes.scores import SCORES
from graphprune.passes.verification.verify import Verify
from graphprune.planning.facts import Refits
from graphprune.planning.index_scores import OfExperts

KINDS = ("llama", "bert", "resnet-basic")


def first(output: Any, batch: int) -> Tensor:
    """A loss of models whose own is not known."""
    logits: Tensor = output["logits"]
    return (logits - batch).square().mean()


@pytest.fixture(scope="module")
def programs(tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]]) -> Callable[[str], Program]:
    """Models with all that scores may ask for, each made once."""
    made: dict[str, Program] = {}

    def make(kind: str) -> Program:
        if kind not in made:
            generator = torch.Generator().manual_seed(2)
            shape = inputs(kind).items()
            calls: Any = tuple(((), {name: _other(value, generator) for name, value in shape}) for _ in range(9))
            steps = gp.Analyze(), Calibrate(batches=calls, moments="full", producers=True)
            loss = None if kind == "llama" else first
            made[kind] = gp.Pipeline((*steps, Gradients(loss), Gradients(loss, "outputs")))(
                gp.trace(tiny(kind), (), inputs(kind))
            )
        return made[kind]

    return make


def _other(value: Any, generator: torch.Generator) -> Any:
    """Another input of the same kind."""
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        return torch.randn(value.shape, generator=generator)
    return torch.randint(3, 60, (6, 9), generator=generator)


@pytest.mark.parametrize("name", [name for name in SCORES if not isinstance(SCORES[name], OfExperts)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_score_cuts_what_it_judges(kind: str, name: str, programs: Callable[[str], Program]) -> None:
    program = programs(kind)
    steps = gp.Score(name), gp.Allocate(ratio=0.5), gp.Select(), gp.Rewrite(), Verify()
    if not SCORES[name].scored(program, program.fact(Dependencies).groups):
        assert name in ("bn-scale", "hrank"), "they read batch norms and feature maps"
        with pytest.raises(PlanError, match=f"no group is left that {name} may cut"):
            gp.Pipeline(steps, given=tuple(program.facts))(program)
        return
    small = gp.Pipeline(steps, given=tuple(program.facts))(program)
    assert small.count() < program.count() and small.fact(Verification).max_error <= 1e-4


@pytest.mark.parametrize("name", RECONSTRUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_refit_brings_layers_nearer(kind: str, name: str, programs: Callable[[str], Program]) -> None:
    program = programs(kind)
    steps = gp.Score("fasp"), gp.Allocate(ratio=0.4), gp.Select(), gp.Rewrite(), Refit(name), Verify()
    small = gp.Pipeline(steps, given=tuple(program.facts))(program)
    refits = small.fact(Refits)
    assert refits.by_weight and not refits.skipped
    assert all(found.error_after <= 1.05 * found.error_before + 1e-9 for found in refits.by_weight.values())
    total = [
        sum(getattr(found, name) for found in refits.by_weight.values()) for name in ("error_after", "error_before")
    ]
    assert total[0] < total[1] or name == "none"
