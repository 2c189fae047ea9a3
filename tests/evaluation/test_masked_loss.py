"""The loss of a plan is that of the cut model, measured without cutting."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from graphprune.axes.groups import Dependencies
from graphprune.errors import CalibrationError
from graphprune.evaluation import masked_loss
from graphprune.evaluation.masked_loss import Objective
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.planning.index_scores import rows_of
from graphprune.planning.plan import make
from graphprune.planning.ranking import top
from graphprune.statistics.collector import Calibration


def calibrated(program: Program, calls: list[list[Any]]) -> Program:
    return program.with_facts(analyze(program), Calibration(calls, "given", len(calls), 0, 0))


def language_model(tiny: Callable[..., nn.Module], kind: str = "llama") -> Program:
    model = tiny(kind, use_cache=False)
    ids = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))
    program = trace(model, (), {"input_ids": ids})
    return calibrated(program, [[ids.flip(0)], [ids.roll(1, 1)], [ids]])


def cut(program: Program, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    found = program.fact(Dependencies)
    groups = [group for group in found.groups if group.exact]
    scores = {g.name: torch.rand(rows_of(g, found), g.size, generator=generator) for g in groups}
    return {g.name: top(scores[g.name], g.size // 2) for g in groups}


@pytest.mark.parametrize("remembered", [0, 16])
def test_of_a_language_model_it_is_that_of_the_next_token(
    tiny: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr(masked_loss, "CHECKPOINTS", remembered or 1)
    program = language_model(tiny)
    judge = Objective.of(program)
    assert judge.is_language_model and len(judge.batches) == 1
    ids = program.inputs[1]["input_ids"]

    def likelihood(model: Program) -> float:
        logits = model.module()(**program.inputs[1]).logits
        return float(cross_entropy(logits[:, :-1].flatten(0, 1).detach(), ids[:, 1:].flatten()))

    assert judge.dense == pytest.approx(likelihood(program), rel=1e-5)
    rows = cut(program)
    for groups in (rows, dict([list(rows.items())[-1]]), {}):
        small = rewrite(program, make(program, program.fact(Dependencies), groups))
        assert judge.loss(groups) == pytest.approx(likelihood(small), rel=1e-5)
        assert judge.loss_of(small) == pytest.approx(likelihood(small), rel=1e-5)


def test_of_any_other_model_it_is_the_relative_error_of_the_outputs() -> None:
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.side = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = torch.relu(self.up(x))
            return self.down(y), self.side(y), x

    x = torch.randn(6, 4)
    program = calibrated(trace(Two(), (x,)), [[x]])
    judge, groups = Objective.of(program), cut(program)
    assert not judge.is_language_model and judge.dense == 0
    small = rewrite(program, make(program, program.fact(Dependencies), groups)).module()(x)
    pairs = list(zip(small[:2], program.module()(x)[:2], strict=True))
    expected = sum(float((new - old).square().sum() / old.square().sum()) for new, old in pairs) / 2
    assert judge.loss(groups) == pytest.approx(expected, rel=1e-5)


def test_what_looks_at_later_tokens_predicts_nothing(tiny: Callable[..., nn.Module]) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(60, 8), nn.Linear(8, 8), nn.Linear(8, 60)

        def forward(self, input_ids: Tensor) -> Any:
            x = self.embed(input_ids)
            return self.head(torch.relu(self.mix(x + x.mean(1, keepdim=True))))

    torch.manual_seed(0)
    ids = torch.randint(0, 60, (2, 8))
    assert not Objective.of(calibrated(trace(Looks(), (), {"input_ids": ids}), [[ids]])).is_language_model


def test_padding_is_not_predicted(tiny: Callable[..., nn.Module]) -> None:
    ids = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    program = trace(tiny("llama", use_cache=False), (), {"input_ids": ids, "attention_mask": mask})
    other = torch.where(mask == 0, 7, ids)
    losses = [Objective.of(calibrated(program, [[leaf, mask]])).dense for leaf in (ids, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_it_wants_calibration() -> None:
    program = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 3),))
    with pytest.raises(CalibrationError, match="plans can only be tried on calibration data; put calibrate before"):
        Objective.of(program)
