"""Prune a module in memory by one call, whole or in parts."""

import copy

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import PlanError, WriteBackError


def backbone() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


class Detector(nn.Module):
    """A backbone, a head, and boxes whose number depends on their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.training_head = nn.Linear(4, 2)

    def forward(self, images: list[Tensor]) -> Tensor:
        features = self.backbone(torch.stack(images)).mean((2, 3))
        scores: Tensor = self.head(features)
        return scores if float(scores.detach().max()) > 0 else scores[:0]


class Curious(Detector):
    """A whole that looks into its backbone."""

    def forward(self, images: list[Tensor]) -> Tensor:
        bias = self.backbone[0].bias
        assert isinstance(bias, Tensor)
        return super().forward(images) + bias.reshape(4, 2).sum()


def images() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 12, 12) for _ in range(2)]


def test_the_parts_that_can_be_captured_are_pruned_and_the_rest_runs_around_them() -> None:
    module, batch = Detector().train(), images()
    result = gp.prune(module, (batch,), ratio=0.5)
    assert list(result.written_back) == ["backbone", "head"]
    assert [layer.weight.shape[0] for layer in module.backbone if isinstance(layer, nn.Conv2d)] == [4, 4, 4]
    assert module.head[0].out_features == 8
    assert result.untouched[""].startswith("torch.export cannot capture Detector")
    assert result.untouched["training_head"] == "it is not called with these inputs"
    assert result.report.parameters_after == sum(parameter.numel() for parameter in module.parameters())
    assert result.report.parameters_after < result.report.parameters_before
    assert module.training
    assert module(batch).shape[1] == 2
    assert "backbone: the module is as narrow as the graph" in str(result)
    with pytest.raises(PlanError, match="pruned in parts, backbone, head; see plans"):
        assert result.plan


def test_a_module_that_can_be_captured_is_pruned_whole() -> None:
    module = backbone()
    result = gp.prune(module, (torch.stack(images()),), ratio=0.5)
    assert (list(result.written_back), dict(result.untouched)) == ([""], {})


def test_a_whole_that_looks_into_a_part_is_unchanged() -> None:
    module = Curious()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(WriteBackError, match=r"Curious does not run around its narrower parts backbone.*shape"):
        gp.prune(module, (images(),), ratio=0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_parameter_that_two_parts_hold_is_not_cut_in_one_of_them() -> None:
    module = Detector()
    other = backbone()
    other[0].weight = module.backbone[0].weight
    module.add_module("other", other)
    result = gp.prune(module, (images(),), ratio=0.5)
    assert list(result.written_back) == ["head"]
    assert result.untouched["backbone"] == "0.weight is also a parameter of another part"


def test_nothing_to_prune_is_an_error_that_says_why() -> None:
    with pytest.raises(PlanError, match="no group is left that magnitude may cut"):
        gp.prune(nn.Linear(4, 4), (torch.randn(2, 4),), ratio=0.5)
