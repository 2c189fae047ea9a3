"""Tests of rounds of cuts while a module trains."""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.optim.swa_utils import AveragedModel

import graphprune as gp
from graphprune.errors import GraphpruneError, PlanError, TrainingError
from graphprune.training.schedules import reductions
from tests.training.loops import Net, X, batches, count, loss, made, train


def test_rounds_follow_the_schedule_and_the_optimizer_follows_them() -> None:
    net, optimizer, pruner = made(recipe="taylor", schedule="linear")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    whole, shares = count(net), []
    while not pruner.done:
        train(net, optimizer, pruner)
        scheduler.step()
        made_round = pruner.step()
        assert made_round.verification is not None and made_round.verification.max_error < 1e-4
        assert not made_round.traced and not made_round.written.reset
        assert {*optimizer.state} == {*net.parameters()} == {*optimizer.param_groups[0]["params"]}
        moments = optimizer.state[net.second.weight]["exp_avg"]
        assert moments.shape == net.second.weight.shape and moments.abs().min() > 0
        shares.append(1 - count(net) / whole)
    assert shares == pytest.approx([0.167, 0.333, 0.5], abs=0.03)
    assert net.features < 12 and net.training
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 8)
    before = train(net, optimizer, pruner)
    assert train(net, optimizer, pruner, 5) < before


def test_a_round_reads_what_was_learned_since_the_capture() -> None:
    net, _, pruner = made(recipe="magnitude", rounds=1, sparsity=0.3)
    with torch.no_grad():
        for layer in (net.first, net.second):
            layer.weight[:3] *= 100  # now the first ones are the most important
            layer.bias[:3] += 7
    pruner.step()
    assert (net.first.bias > 5).sum() == 3 and (net.second.bias > 5).sum() == 3


def test_the_module_computes_what_the_masked_one_computed() -> None:
    net, _, pruner = made(recipe="magnitude", rounds=2)
    for _ in range(2):
        dense: Any = copy.deepcopy(net)
        pruner.step()
        kept = pruner.plans[-1]
        with torch.no_grad():
            for group, layer in ((g, name) for g in kept for name in ("first", "second") if g.startswith(name)):
                removed = sorted({*range(len(getattr(dense, layer).bias))} - {*kept[group][0]})
                consumer = dense.second if layer == "first" else dense.head
                consumer.weight[:, removed] = 0
        assert torch.allclose(dense.eval()(X), net.eval()(X), atol=1e-5)
        with torch.no_grad():
            net.head.weight.mul_(1.5)  # training goes on


@pytest.mark.parametrize(
    ("name", "shares"),
    [("cubic", (0.578, 0.875, 0.984, 1.0)), ("linear", (0.25, 0.5, 0.75, 1.0)), ("one-shot", (1.0, 1.0, 1.0, 1.0))],
)
def test_schedules(name: str, shares: tuple[float, ...]) -> None:
    assert reductions(name, 4) == pytest.approx(shares, abs=1e-3)
    with pytest.raises(TrainingError, match="rise from 0 to 1"):
        reductions(lambda part: 1 - part, 4)
    with pytest.raises(TrainingError, match="gives 'all' after its rounds"):
        reductions(lambda part: "all", 4)  # type: ignore[arg-type, return-value]


def test_groups_narrow_to_widths_and_by_ratios() -> None:
    net, _, pruner = made(
        recipe="magnitude", schedule="linear", sparsity=None, widths={"first": 10, "second.weight": 6}
    )
    widths = []
    for _ in range(3):
        done = pruner.step()
        widths.append((net.first.out_channels, net.second.out_channels))
        assert done.sparsity == pytest.approx(done.target)
    assert widths == [(14, 10), (12, 8), (10, 6)]
    net, _, pruner = made(recipe="magnitude", rounds=2, sparsity=None, ratio={"first": 0.25, "*": 0.5})
    while not pruner.done:
        pruner.step()
    assert (net.first.out_channels, net.second.out_channels) == (12, 6)


def test_the_first_batch_is_the_example_where_there_is_no_other() -> None:
    torch.manual_seed(0)
    net = Net()
    pruner = gp.Pruner(net, ratio=0.5, rounds=1, data=batches(), loss=loss)
    assert pruner.step().written is not None and net.first.out_channels == 8
    with pytest.raises(GraphpruneError, match="no inputs|missing"):
        gp.Pruner(Net(), ratio=0.5)


def test_one_shot_leaves_nothing_for_later_rounds() -> None:
    _, _, pruner = made(recipe="magnitude", schedule="one-shot", rounds=2, sparsity=None, macs=0.5)
    assert pruner.step().sparsity == pytest.approx(0.5, abs=0.05)
    second = pruner.step()
    assert second.written is None and second.before == second.after and "nothing to remove" in str(second)


def test_a_run_continues_from_its_state() -> None:
    net, optimizer, pruner = made(recipe="magnitude", regularizer="growing")
    for _ in range(2):
        train(net, optimizer, pruner)
        pruner.step()
    train(net, optimizer, pruner)
    saved = load(save(pruner.state_dict())), copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    pruner.step()
    other, again, resumed = made(recipe="magnitude", regularizer="growing")
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1][0])
    again.load_state_dict(saved[1][1])
    assert resumed.regularizer.strength == pytest.approx(4e-4)
    assert len(resumed.history) == 2 and not resumed.done
    resumed.step()
    assert [p.shape for p in other.parameters()] == [p.shape for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), net.state_dict().values(), strict=True))
    with pytest.raises(TrainingError, match="before the weights"):
        resumed.load_state_dict(saved[0])
    with pytest.raises(TrainingError, match="no state of a pruner: it has no version"):
        resumed.load_state_dict({})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"rounds": 5}, r"a run of 3 rounds, this pruner has 5; .*rounds=3"),
        ({"rounds": 2}, r"a run of 3 rounds, this pruner has 2; .*rounds=3"),
        ({"schedule": "linear"}, r"35.1852% are removed after round 1 of 3, .* 16.6667%; make the pruner with the sch"),
        ({"sparsity": 0.4}, r"35.1852% are removed after round 1 of 3, .* 28.1481%; .* the amount of the saved run"),
        ({"sparsity": None, "ratio": 0.3}, r"35.1852% are removed after round 1 of 3"),
    ],
)
def test_a_state_of_other_rounds_is_refused(other: dict[str, Any], message: str) -> None:
    _, _, pruner = made(recipe="magnitude", schedule="cubic")
    pruner.step()
    net, _, resumed = made(recipe="magnitude", **{"schedule": "cubic", **other})
    with pytest.raises(TrainingError, match=message):
        resumed.load_state_dict(load(save(pruner.state_dict())))
    assert net.features == 12 and not resumed.history  # as before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rounds": torch.tensor([1, 2])},
            r"rounds is torch.int64 of shape \(2,\), expected .* whole numbers of 0 dim",
        ),
        ({"rounds": torch.tensor(-1)}, "with -1 rounds, expected .* 0 rounds or more"),
        ({"rounds": "x"}, "rounds is 'x', expected a tensor"),
        ({"softened": torch.tensor(0.5)}, r"softened is torch.float32 of shape \(\), expected"),
        ({"version": torch.tensor(9)}, "version 9 .*expected version 1 at most.*; update graphprune"),
        ({"fingerprint": torch.tensor([0.5])}, "fingerprint is torch.float32 .* whole numbers of 1 dim"),
        ({"fingerprint": torch.tensor([255], dtype=torch.uint8)}, "a module with fingerprint"),
        ({"reductions": torch.ones(3, 2)}, r"reductions is .* \(3, 2\), expected a tensor of real numbers of 1 dim"),
        ({"reductions": torch.full((3,), float("nan"))}, "nan% are removed after round 1"),
        ({"plan.0.first.weight:0": torch.tensor([1, 2])}, r"plan.0.first.weight:0 is .* whole numbers of 2 dim"),
        ({"regularizer.strength": torch.tensor(1.0)}, "has regularizer.strength, this pruner expects none"),
        ({"masks.multiplier": torch.tensor(1.0)}, "a run with masks, this pruner has none"),
    ],
)
def test_a_damaged_state_is_one_error(change: dict[str, Any], message: str) -> None:
    _, _, pruner = made(recipe="magnitude")
    pruner.step()
    net, _, resumed = made(recipe="magnitude")
    with pytest.raises(TrainingError, match=message):
        resumed.load_state_dict({**pruner.state_dict(), **change})
    assert net.features == 12 and not resumed.history


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (
            {"regularizer": "growing"},
            {"plan.1.first.weight:0": torch.tensor([[0, 99]])},
            r"round 2 of the state .*unique and below \d+, got",
        ),
        ({}, {"plan.1.other:0": torch.tensor([[0, 1]])}, "round 2 of the state .*the model has no group 'other:0'"),
        ({"masks": "sigmoid"}, {"plan.1.other:0": torch.tensor([[0, 1]])}, "the model has no group 'other:0'"),
        ({"masks": "sigmoid"}, {"masks.logits.second.weight:0": torch.zeros(1)}, "no masks of group second.weight:0"),
    ],
)
def test_a_state_that_fails_in_a_later_round_changes_nothing(
    options: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    _, _, pruner = made(recipe="magnitude", **options)
    pruner.step()
    pruner.step()
    net, optimizer, resumed = made(recipe="magnitude", **options)
    train(net, optimizer, resumed)

    def state() -> list[Any]:
        held = [id(one) for one in (*net.parameters(), *optimizer.state, *optimizer.param_groups[0]["params"])]
        return [*held, *map(repr, net.modules()), net.features, resumed.history[:], vars(resumed)]

    numbers, before = copy.deepcopy(net.state_dict()), state()
    with pytest.raises(TrainingError, match=message):
        resumed.load_state_dict({**pruner.state_dict(), **change})
    assert state() == before and all(torch.equal(value, numbers[name]) for name, value in net.state_dict().items())
    train(net, optimizer, resumed)
    resumed.load_state_dict(pruner.state_dict())  # as if the first call had not been made
    assert [p.shape for p in net.parameters()] == [p.shape for p in pruner.module.parameters()]


def test_a_state_without_the_regularizer_or_masks_is_refused() -> None:
    state = made(recipe="magnitude")[2].state_dict()
    for options, message in (
        ({"regularizer": "growing"}, "no numbers of a regularizer, this pruner expects regularizer.strength"),
        ({"masks": "sigmoid"}, "a run without masks, this pruner has some"),
    ):
        with pytest.raises(TrainingError, match=message):
            made(recipe="magnitude", **options)[2].load_state_dict(state)


@pytest.mark.slow
def test_an_average_and_a_compiled_module_follow() -> None:
    net, optimizer, _ = made()
    average: Any = AveragedModel(net)
    compiled: Any = torch.compile(net, backend="eager")
    pruner = gp.Pruner(compiled, (X,), sparsity=0.5, rounds=2, optimizer=optimizer, average=average)
    for _ in range(2):
        loss(compiled(X), (X, torch.tensor([0, 1]))).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(net)
        pruner.step()
        assert torch.allclose(compiled(X), net(X)) and average(X).shape == (2, 4)
        shapes = [p.shape for p in average.module.parameters()]
        assert shapes == [p.shape for p in net.parameters()]


def test_mixed_precision_and_scaled_gradients() -> None:
    net, optimizer, pruner = made(recipe="taylor", rounds=2)
    scaler: Any = torch.amp.GradScaler("cpu")
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(net(batches(1)[0][0]), batches(1)[0])
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        with torch.autocast("cpu", torch.bfloat16):  # a round computes in full precision anyway
            assert pruner.step().verification.max_error < 1e-4
    assert net.first.weight.dtype == torch.float32


def test_what_breaks_a_loop_is_refused() -> None:
    net, _, pruner = made(recipe="magnitude")

    def refused(message: str) -> None:
        before = {name: (id(p), p.detach().clone()) for name, p in net.named_parameters()}
        with pytest.raises(TrainingError, match=message):
            pruner.step()
        for name, parameter in net.named_parameters():
            same = torch.equal(parameter.nan_to_num(), before[name][1].nan_to_num())
            assert same and id(parameter) == before[name][0]
        assert not pruner.history

    second, bias = net.second, net.head.bias
    net.second = nn.Conv2d(16, 6, 3)
    refused("trains 2 of 8 parameters that Net does not have")
    net.second, net.head.bias = second, nn.Parameter(torch.zeros(4))
    refused("trains 1 of 8 parameters")
    net.head.bias = bias
    net.first.double()
    refused(r"first.weight of Net has changed since the last round: expected shape \(16, 3, 3, 3\) and torch.float32")
    net.first.float()
    net.head.bias.data[0] = float("nan")
    refused("head.bias holds NaN or infinity")
    net.head.bias.data[0] = 0.0
    loss(net(X), (X, torch.tensor([0, 1]))).backward()
    refused("the gradient of first.weight was not applied yet")
    net.zero_grad()
    assert pruner.step().written is not None


def test_gradients_that_were_applied_are_not_pending() -> None:
    net, optimizer, pruner = made(recipe="magnitude")
    loss(net(X), (X, torch.tensor([0, 1]))).backward()
    optimizer.step()  # a loop that clears the gradients at its start
    assert pruner.step().written is not None


def test_optimizers_of_a_part_and_of_more_than_the_module_follow() -> None:
    torch.manual_seed(0)
    net: Any = Net()
    scale = nn.Parameter(torch.ones(()))
    head = torch.optim.SGD(net.head.parameters(), 0.1)
    pruner: Any = gp.Pruner(net, (X,), ratio=0.25, rounds=2, schedule="linear", recipe="magnitude", optimizer=head)
    batch = X, torch.tensor([0, 1])
    for make in (lambda: head, lambda: torch.optim.LBFGS([*net.parameters(), scale], max_iter=2)):
        optimizer: Any = make()

        def closure(one: Any = optimizer) -> Any:
            one.zero_grad()
            value = loss(net(X) * scale, batch)
            value.backward()
            return value

        pruner.adopt(optimizer)
        optimizer.step(closure)
        assert net.first.weight.grad.abs().sum() > 0
        done = pruner.step()
        assert bool(done.written.reset) == (optimizer is not head)
        optimizer.step(closure)  # with its new sizes
    assert net.first.out_channels == 12


def test_hooks_of_parameters_that_are_lost_are_named(caplog: pytest.LogCaptureFixture) -> None:
    net, _, pruner = made(recipe="magnitude", rounds=1)
    net.second.weight.register_hook(lambda gradient: gradient * 2)
    net.head.bias.register_hook(lambda gradient: gradient * 2)  # which is not cut
    pruner.step()
    (message,) = [record.getMessage() for record in caplog.records if "hooks" in record.getMessage()]
    assert "register those of ['second.weight'] again" in message


def test_options_that_do_not_fit_are_refused() -> None:
    net = Net()
    foreign = torch.optim.SGD(Net().parameters(), 0.1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": foreign}, "SGD trains 8 of 8 parameters that Net does not have"),
        ({"optimizer": "adam"}, "optimizer is a str, expected one of torch.optim"),
        ({"sparsity": 70}, r"sparsity must lie between 0 and 1 \(0.7 removes 70 %\), got 70"),
        ({"macs": 0.5}, "give one of sparsity, macs, ratio, widths, got sparsity and macs"),
        ({"sparsity": None}, "got none of them"),
        ({"sparsity": None, "macs": 0.5, "budget": "kv_cache"}, "the budget is kv_cache; omit one"),
        ({"sparsity": None, "ratio": 50}, r"ratio must lie between 0 and 1 \(0.7 removes 70 %\), got 50"),
        ({"sparsity": None, "widths": {"first": 17}}, "group .* can retain .*, not 17"),
        ({"sparsity": None, "ratio": 0.5, "masks": "sigmoid"}, "masks choose the widths of groups, which ratio sets"),
        ({"rounds": 0}, "rounds must be a positive whole number, got 0"),
        ({"recipe": "fasp"}, "recipe fasp needs data"),
        ({"regularizer": "dress"}, "regularizer OutputEnergy needs data"),
        ({"recipe": "sleb"}, "recipe sleb drops blocks, which a module"),
        ({"masks": "sigmoid"}, "masks need optimizer="),
        ({"masks": "soft"}, "no masks of kind 'soft'"),
        ({"budget": "latency"}, "no budget in latency"),
        ({"shots": 3}, "a pruner has no option 'shots'"),
        ({"schedule": "cubical"}, "no schedule 'cubical'; did you mean cubic"),
    ]
    for options, message in cases:
        with pytest.raises(GraphpruneError, match=message):
            gp.Pruner(net, (X,), **{"sparsity": 0.5} | options)


def test_too_much_is_refused_and_all_rounds_end() -> None:
    for amount in ({"sparsity": 0.99}, {"sparsity": None, "macs": 0.999}):
        with pytest.raises(PlanError, match="the free groups hold at most"):
            made(recipe="magnitude", **amount)
    _, _, pruner = made(recipe="magnitude", sparsity=0.2, rounds=1)
    pruner.step()
    assert float(pruner.penalty()) == 0
    with pytest.raises(TrainingError, match="all 1 rounds were made"):
        pruner.step()


def test_a_loss_that_is_not_finite_is_refused() -> None:
    net, _, pruner = made(recipe="taylor", loss=lambda output, batch: output.sum() / 0)
    with pytest.raises(GraphpruneError, match="the loss is .*inf|nan"):
        pruner.step()
    assert count(net) == pruner.program.count()
