"""Scores of convolutional networks against a direct computation, on a small network with batch norms."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import PlanError
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.scores import SCORES
from graphprune.passes.scores.hrank import TIE
from graphprune.planning.facts import Eligible
from graphprune.planning.interfaces import Evidence


class Net(nn.Module):
    """A residual block whose stream two norms scale, and a head without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        self.hidden, self.fc = nn.Linear(6, 10), nn.Linear(10, 4)

    def inner(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn1(self.conv1(self.stream(x))))

    def stream(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn0(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stream(x) + self.bn2(self.conv2(self.inner(x)))
        return self.fc(torch.relu(self.hidden(y.mean((2, 3)))))  # type: ignore[no-any-return]


def net() -> Net:
    torch.manual_seed(0)
    module = Net().double().eval()
    for norm in (module.bn0, module.bn1, module.bn2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias, std=0.5)
    nn.init.constant_(module.bn1.bias[2:3], -9.0)  # a channel that is never active
    return module


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 3, 5, 6, generator=generator).double() for _ in range(2)]


@pytest.fixture(scope="module")
def program() -> gp.Program:
    calls: Any = tuple(((x,), {}) for x in images())
    return gp.Pipeline((gp.Analyze(), Calibrate(batches=calls, moments="none")))(gp.trace(net(), (images()[0],)))


def group(program: gp.Program, name: str) -> Group:
    return program.fact(Dependencies).by_name[f"{name}.weight:0"]


def score(program: gp.Program, by: str, name: str) -> Tensor:
    return SCORES[by].score(group(program, name), Evidence(program, program.fact(Dependencies), None))[0]


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-9, atol=1e-12)


def test_scales_of_batch_norms_are_averaged_where_several_scale_a_channel(program: gp.Program) -> None:
    module = net()
    same(score(program, "bn-scale", "conv1"), module.bn1.weight.abs())
    same(score(program, "bn-scale", "stem"), (module.bn0.weight.abs() + module.bn2.weight.abs()) / 2)
    named = {g.name for g in SCORES["bn-scale"].scored(program, program.fact(Eligible).groups)}
    assert named == {"stem.weight:0", "conv1.weight:0"}, "the hidden layer has no norm"


def test_lamp_is_relative_to_all_larger_indices(program: gp.Program) -> None:
    module = net()
    parts = [module.hidden.weight.square().sum(1), module.hidden.bias.square(), module.fc.weight.square().sum(0)]
    energy = torch.stack(parts).sum(0)
    direct = torch.stack([e / energy[energy >= e].sum() for e in energy])
    same(score(program, "lamp", "hidden"), direct)
    assert float(direct.detach().max()) == 1


def test_fpgm_is_the_sum_of_distances_to_all_filters(program: gp.Program) -> None:
    module = net()
    filters = module.conv1.weight.flatten(1)
    same(score(program, "fpgm", "conv1"), torch.stack([(filters - f).norm(dim=1).sum() for f in filters]))
    first, second = module.stem.weight.flatten(1), module.conv2.weight.flatten(1)
    both = [(first - f).norm(dim=1).sum() + (second - g).norm(dim=1).sum() for f, g in zip(first, second, strict=True)]
    same(score(program, "fpgm", "stem"), torch.stack(both))


def test_hrank_is_the_mean_rank_of_feature_maps(program: gp.Program) -> None:
    with torch.no_grad():
        maps = net().inner(torch.cat(images()))
    singular = torch.linalg.svdvals(maps)
    p = singular / singular.sum(-1, keepdim=True).clamp(min=1e-300)
    effective = (-(p * p.clamp(min=1e-300).log()).sum(-1)).exp().where(singular[..., 0] > 0, 0.0)
    direct = (torch.linalg.matrix_rank(maps) + TIE * effective / 5).mean(0)
    same(score(program, "hrank", "conv1"), direct)
    assert direct[2] == 0 and direct.argmin() == 2
    assert group(program, "hidden") not in SCORES["hrank"].scored(program, program.fact(Eligible).groups)


@pytest.mark.parametrize("recipe", ["network-slimming", "lamp", "fpgm", "hrank"])
def test_recipes_cut_the_network(program: gp.Program, recipe: str) -> None:
    calls: Any = tuple(((x,), {}) for x in images())
    plan = gp.plan(program, recipe=recipe, sparsity=0.3, batches=calls)
    small = gp.apply(program, plan)
    assert gp.verify(program, small, plan) and small.count() == pytest.approx(0.7 * program.count(), rel=0.05)


def test_one_threshold_for_scores_as_they_are(program: gp.Program) -> None:
    """The removed channels of both groups are those with the lowest scales of all."""
    plan = gp.plan(program, recipe="network-slimming", sparsity=0.3)
    scores = {name: score(program, "bn-scale", name) for name in ("stem", "conv1")}
    retained = {name: list(plan.groups.get(f"{name}.weight:0", [range(len(s))])[0]) for name, s in scores.items()}
    lowest = min(float(s[retained[name]].min()) for name, s in scores.items())
    removed = [float(v) for name, s in scores.items() for i, v in enumerate(s) if i not in retained[name]]
    assert removed and sorted(removed)[:-1] <= [lowest] * len(removed)


def test_networks_without_norms_or_maps_are_refused() -> None:
    plain = gp.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(2, 4),))
    with pytest.raises(PlanError, match="no group is left that bn-scale may cut"):
        gp.plan(plain, recipe="network-slimming", sparsity=0.2)
