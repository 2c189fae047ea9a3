"""Batches of a user become calls of a module; what does not fit is one clear error."""

import logging
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from graphprune.errors import CalibrationError
from graphprune.statistics.user_data import UserData, checked_loss

X, Y = torch.randn(24, 4), torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(x if mask is None else x * mask)  # type: ignore[no-any-return]


class Pair(nn.Module):
    """Two required inputs."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Labeled(nn.Module):
    """A forward that names its labels, and takes other keywords."""

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        return input_ids, labels, kwargs


class Keywords(nn.Module):
    """A forward that names nothing."""

    def forward(self, **kwargs: Any) -> Any:
        return kwargs


@pytest.mark.parametrize(
    "module, batch, args, kwargs",
    [
        (Net(), X, (X,), {}),
        (Net(), (X, Y), (X,), {}),
        (Net(), [X, Y], (X,), {}),
        (Net(), {"x": X, "label": Y}, (), {"x": X}),
        (Net(), UserDict({"x": X, "y": Y}), (), {"x": X}),
        (Net(), ({"x": X, "mask": X}, Y), (), {"x": X, "mask": X}),
        (Net(), ((X, X), Y), (X, X), {}),
        (Pair(), (X, X), (X, X), {}),
        (Pair(), (X, X, Y), (X, X), {}),
        (Pair(), [[X, X], Y], (X, X), {}),
        (Labeled(), {"input_ids": X, "labels": Y, "text": ["a"]}, (), {"input_ids": X, "labels": Y}),
        (Labeled(), (X, Y), (X,), {}),
        (Keywords(), {"pixels": X, "labels": Y}, (), {"pixels": X}),
        (nn.Sequential(nn.Linear(4, 3)), (X, Y), (X,), {}),
    ],
)
def test_inputs_are_identified_by_the_signature(module: nn.Module, batch: Any, args: Any, kwargs: Any) -> None:
    call = UserData.of(module, [batch]).calls()[0]
    assert (len(call.args), list(call.kwargs)) == (len(args), list(kwargs))
    assert all(a is b for a, b in zip((*call.args, *call.kwargs.values()), (*args, *kwargs.values()), strict=True))


def test_a_loader_is_drawn_anew_and_in_part() -> None:
    data = UserData.of(Net(), DataLoader(TensorDataset(X, Y), batch_size=4))
    assert [len(list(data)) for _ in range(2)] == [6, 6]
    assert [len(data.calls(most=2)), len(data.calls(samples=9))] == [2, 3]
    assert len(list(UserData.of(Net(), lambda: iter([(X, Y)])))) == 1


def test_forward_calls_the_model_and_finishes_its_output() -> None:
    net = Net()
    data = UserData.of(net, [{"image": X, "y": Y}], lambda model, batch: model(batch["image"]).log_softmax(1))
    calls = data.calls()
    assert calls[0].args[0] is X
    loss = data.loss(lambda output, batch: nn.functional.nll_loss(output, batch["y"]), calls)
    torch.testing.assert_close(loss(net(X), 0), cross_entropy(net(X), Y))
    torch.testing.assert_close(data.output(net, calls[0].batch), net(X).log_softmax(1))


def test_inputs_are_passed_as_those_of_the_example() -> None:
    data = UserData.of(Net(), [{"x": X, "mask": X}], example=((X,), {}))
    assert (data.calls()[0].args[0] is X, data.calls()[0].kwargs) == (True, {})
    with pytest.raises(CalibrationError, match="a batch gives x, and the example inputs .* have mask, too"):
        UserData.of(Net(), [X], example=((X, X), {})).calls()


def test_a_metric_is_the_mean_over_samples() -> None:
    net = Net().train()
    data = UserData.of(net, DataLoader(TensorDataset(X, Y), batch_size=10))
    mean = data.mean(lambda output, batch: (output.argmax(1) == batch[1]).float().mean(), net)
    assert mean == pytest.approx(float((net(X).argmax(1) == Y).float().mean()))
    assert mean == data.mean(lambda output, batch: output.argmax(1) == batch[1], net), "one number for each sample"
    assert net.training


def test_arrays_are_tensors() -> None:
    data = UserData.of(Net(), [(X.numpy(), Y.numpy(), "a name")], lambda model, batch: model(batch[0]))
    (call,) = data.calls()
    assert call.args[0].equal(X) and call.batch[1].equal(Y) and call.batch[2] == "a name" and call.size == len(X)


def test_a_metric_that_is_no_number_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    assert np.isnan(UserData.of(net, [X, X]).mean(lambda output, batch: float("nan"), net))
    (record,) = caplog.records
    assert "the metric is nan on the batch float32[24, 4]" in record.getMessage()


def early() -> Any:
    """A loader whose length promises more than it has."""

    class Early:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[Any]:
            yield X

    return Early()


def failing() -> Iterator[Any]:
    yield X
    raise OSError(5, "no disk")


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "has no batch: it is empty;.* pass a DataLoader"),
        (iter([]), "an iterator that was read before"),
        (early(), "ended after 1 of 3 batches"),
        (failing, "batch 1 of the data cannot be read .reason: no disk"),
        (X, r"data is float32\[24, 4\], expected an iterable of batches"),
        ({"x": X}, "for one batch, pass"),
        (TensorDataset(X, Y), "has samples and no batches; pass DataLoader"),
        (3, "data is an int, expected an iterable"),
        (["text"], "the batch a str is no tensor, tuple, list or dict; expected the inputs of forward.x, mask=None"),
        ([{"image": X}], "has no entry that is a parameter of the forward"),
        ([(X, X, Y)], "has 3 parts, of which the forward takes 1 to 2; .*forward=lambda model, batch"),
        ([np.array(["text"])], "the batch an array of <U4 is no tensor"),
        ([None], "the batch None is no tensor"),
        ([X, X[0]], r"batch 1 is float32\[4\], unlike the first one"),
    ],
)
def test_unusable_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        UserData.of(Net(), data).calls()


def test_a_batch_that_the_module_does_not_run_on() -> None:
    data = UserData.of(Net(), [(torch.randn(2, 5), Y[:2])])
    with pytest.raises(CalibrationError, match=r"Net does not run on the batch .*float32\[2, 5\].*int64\[2\] from"):
        data.require_running(data.calls()[0])
    with pytest.raises(CalibrationError, match="missing a required argument: 'b'"):
        UserData.of(Pair(), [X]).calls()


@pytest.mark.parametrize(
    "forward, message",
    [
        (lambda model, batch: None, "forward= does not call the model"),
        (lambda model, batch: model(batch["x"]), "forward= fails on the batch"),
    ],
)
def test_a_forward_that_is_no_call(forward: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        UserData.of(Net(), [(X, Y)], forward).calls()


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda o, b: cross_entropy(o, b[1], reduction="none"), r"the loss is float32\[24\], expected .* one number"),
        (lambda o, b: float(o.sum()), "the loss is a float"),
        (lambda o, b: o.sum() / 0, "the loss is (inf|-inf|nan) on the batch"),
        (lambda o, b: o.detach().sum(), "does not depend on the output"),
        (lambda o, b: cross_entropy(o, b[1] + 3), r"the loss fails .reason: Target \d is out of bounds.*int64\[24\]"),
    ],
)
def test_an_unusable_loss_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        checked_loss(loss, Net()(X), (X, Y))


def test_data_sorted_by_label_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for labels, words in ((torch.zeros(24).long(), "all 24 labels are 0"), (Y.sort()[0], "the 24 labels ascend")):
        with caplog.at_level(logging.WARNING):
            UserData.of(Net(), [(X, labels)]).calls()
        assert words in caplog.text and "shuffle" in caplog.text
        caplog.clear()
    UserData.of(Net(), [(X, Y)]).calls()
    assert not caplog.text
