"""Tests of regularizers of coupled groups, learned masks and soft pruning."""

from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import RegistryError, TrainingError
from graphprune.training.regularizers import REGULARIZERS
from graphprune.training.regularizers import made as made_regularizer
from graphprune.training.regularizers.growing import Growing
from tests.training.loops import X, batches, made, train


def norms(net: Any) -> Any:
    """The squared norms of all weights of each channel of the first convolution, with its norm and its consumer."""
    rows = net.first.weight.square().sum((1, 2, 3)) + net.first.bias.square()
    return rows + net.norm.weight.square() + net.norm.bias.square() + net.second.weight.square().sum((0, 2, 3))


def test_group_lasso_is_the_norm_of_all_coupled_weights() -> None:
    net, _, pruner = made(recipe="magnitude", regularizer="group-lasso", strength=0.1)
    second = net.second.weight.square().sum((1, 2, 3)) + net.second.bias.square() + net.head.weight.square().sum(0)
    each = 27 + 1 + 2 + 12 * 9, 16 * 9 + 1 + 4
    expected = 0.1 * (each[0] ** 0.5 * norms(net).sqrt().sum() + each[1] ** 0.5 * second.sqrt().sum())
    penalty = pruner.penalty()
    assert float(penalty) == pytest.approx(float(expected), rel=1e-5)
    penalty.backward()
    theirs = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    expected.backward()
    ours = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(ours) == len(theirs) == 7  # all but the bias of the head
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_slimming_is_the_sum_of_the_scales_of_norms() -> None:
    net, _, pruner = made(recipe="magnitude", regularizer="bn-scale", strength=0.1)
    with torch.no_grad():
        net.norm.weight.copy_(torch.linspace(-1, 1, 16))
    assert float(pruner.penalty()) == pytest.approx(0.1 * float(net.norm.weight.abs().sum()))
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    pruner = gp.Pruner(plain, (torch.randn(3, 4),), sparsity=0.3, regularizer="bn-scale")
    with pytest.raises(TrainingError, match="no group that may be cut has the scale of a batch norm"):
        pruner.penalty()


def test_growing_regularization_acts_on_what_is_removed_then() -> None:
    net, _, pruner = made(recipe="magnitude", regularizer=Growing(rate=0.5, ceiling=0.8), rounds=1, sparsity=0.3)
    first, second = pruner.penalty(), pruner.penalty()
    assert float(second) == pytest.approx(1.6 * float(first))
    second.backward()
    regularized = (net.first.weight.grad.abs().sum((1, 2, 3)) > 0).nonzero()[:, 0].tolist()
    net.zero_grad()
    retained = sorted({*range(16)} - {*regularized})
    with torch.no_grad():
        net.first.weight[regularized] *= 100  # a new score would retain them
    before = net.first.bias.detach().clone()
    made_round = pruner.step()
    assert regularized and torch.equal(net.first.bias, before[retained])
    assert made_round.masses is not None and made_round.masses[1] > made_round.masses[0]
    assert "mass of what was removed" in str(made_round)


def test_dress_moves_the_energy_of_outputs_out_of_what_is_removed() -> None:
    net, optimizer, pruner = made(recipe="magnitude", regularizer="dress", strength=20.0, rounds=1, sparsity=0.4)
    energies = pruner._selected().weights
    pruner.penalty()
    with torch.no_grad():
        net.eval()
        inputs = torch.cat([torch.relu(net.norm(net.first(x))) for x, _ in batches()])
        patches = nn.functional.unfold(inputs, 3).square().mean((0, 2)).view(16, 9)
        channels = (patches * net.second.weight.square().sum(0).flatten(1)).sum(1)
        hidden = torch.relu(net.second(inputs)).amax((2, 3))
        features = hidden.square().mean(0) * net.head.weight.square().sum(0)
        tables = {"first": channels, "second": features}
        marked = sum(float((tables[g.partition(".")[0]] * mask[0]).sum()) for g, mask in energies.removed.items())
        before = marked / float(channels.sum() + features.sum())
        net.train()
    train(net, optimizer, pruner, 3)
    masses = pruner.step().masses
    assert masses is not None and masses[0] == pytest.approx(before, rel=1e-4)
    assert masses[1] < 0.7 * before


@pytest.mark.parametrize("kind", ["sigmoid", pytest.param("hard-concrete", marks=pytest.mark.slow)])
def test_masks_are_learned_and_choose_what_is_removed(kind: str) -> None:
    net, optimizer, pruner = made(recipe="magnitude", masks=kind, rounds=2, sparsity=0.4, schedule="linear")
    assert "second.parametrizations.weight.original" in dict(net.named_parameters())
    net.eval()
    whole = net(X)
    net.train()
    train(net, optimizer, pruner, 2)
    assert pruner.masks is not None
    with torch.no_grad():  # these are closed whatever their weights are
        name = next(name for name in pruner.masks.logits if name.startswith("first"))
        pruner.masks.logits[name][0, :4] = -9.0
        net.first.weight[:4] *= 100
        before = net.first.bias.detach().clone()
    first = pruner.step()
    assert first.sparsity == pytest.approx(0.2, abs=0.03)
    removed = ~torch.isin(before, net.first.bias)
    assert removed[:4].any() and not removed[4:].any()
    train(net, optimizer, pruner)
    resumed = made(recipe="magnitude", masks=kind, rounds=2, sparsity=0.4, schedule="linear")
    resumed[2].load_state_dict(pruner.state_dict())
    assert resumed[2].masks is not None
    for name, logits in pruner.masks.logits.items():
        assert torch.equal(resumed[2].masks.logits[name], logits)
    pruner.step()
    assert pruner.done and not pruner.masks.attached
    assert {*dict(net.named_parameters())} == {*dict(made()[0].named_parameters())}
    assert {*optimizer.state} == {*net.parameters()} and whole.isfinite().all()


def test_masks_are_as_before_where_a_round_fails() -> None:
    net, _, pruner = made(recipe="magnitude", masks="sigmoid", rounds=1, sparsity=0.5)
    assert pruner.masks is not None
    with torch.no_grad():
        pruner.masks.logits[next(iter(pruner.masks.logits))].fill_(0.0)
        next(net.parameters()).fill_(float("nan"))
    before = {name: (id(p), p.detach().clone()) for name, p in net.named_parameters()}
    with pytest.raises(gp.GraphpruneError, match="NaN or infinity"):
        pruner.step()
    after = dict(net.named_parameters())
    assert all(
        id(after[name]) == key and torch.equal(after[name].nan_to_num(), value.nan_to_num())
        for name, (key, value) in before.items()
    )


def test_masks_push_the_budget_down() -> None:
    net, optimizer, pruner = made(recipe="magnitude", masks="sigmoid", rounds=1, sparsity=0.5)
    assert pruner.masks is not None
    pruner.masks.rate = 0.3
    pruner._attach_masks(pruner.masks) if not pruner.masks.attached else None
    first = pruner.masks.probabilities(next(iter(pruner.masks.logits))).mean()
    train(net, optimizer, pruner, 6)
    open_now = [float(pruner.masks.probabilities(name).mean()) for name in pruner.masks.logits]
    assert min(open_now) < 0.9 * float(first)


def test_a_soft_start_sets_to_zero_what_may_recover() -> None:
    net, optimizer, pruner = made(recipe="magnitude", soft=1, rounds=1, sparsity=0.4)
    softened = pruner.step()
    zero = (net.second.weight == 0).all(3).all(2).all(0)
    assert softened.softened > 0.1 and not pruner.done and zero.any() and "may recover" in str(softened)
    assert net.first.weight.abs().sum((1, 2, 3)).min() > 0
    train(net, optimizer, pruner)
    assert not (net.second.weight == 0).any()  # its columns have gradients
    assert pruner.step().sparsity == pytest.approx(0.4, abs=0.03)


def test_a_penalty_of_former_shapes_and_unknown_names_are_refused() -> None:
    net, _, pruner = made(recipe="magnitude", regularizer="group-lasso")
    weights = pruner._selected().weights
    pruner.step()
    with pytest.raises(TrainingError, match="first.weight has shape .* it was cut since"):
        pruner.regularizer.penalty(weights)
    assert float(pruner.penalty()) > 0
    net.second = nn.Conv2d(11, 7, 3)
    pruner._selection = None
    with pytest.raises(TrainingError, match="second.weight of Net has changed since the last round"):
        pruner.penalty()
    with pytest.raises(RegistryError, match="no regularizer 'group-laso'; did you mean group-lasso"):
        made(regularizer="group-laso")
    with pytest.raises(TrainingError, match="strength must be a number of at least 0, got -1"):
        made(regularizer="group-lasso", strength=-1)


def test_every_regularizer_has_gradients() -> None:
    net, _, pruner = made(recipe="magnitude")
    for name in REGULARIZERS:
        pruner.regularizer, pruner._selection = made_regularizer(name, 0.5), None
        net.zero_grad()
        pruner.penalty().backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        assert gradients and all(g.isfinite().all() for g in gradients) and any(g.abs().sum() > 0 for g in gradients)
