"""User's data: any iterable of batches, as calls of a module, with the user's loss and metric on its outputs."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from graphprune.errors import CalibrationError, because
from graphprune.execution.module_state import evaluation_mode, preserved_state
from graphprune.execution.wrappers import unwrapped
from graphprune.ir.program import Inputs, Program
from graphprune.statistics import batch_inputs
from graphprune.statistics.batch_inputs import FORWARD, LABELS, Forward, described, form, moved

log = logging.getLogger(__name__)

#: The user's loss or metric: of the output of a model, and the batch that it was called with.
OfBatch = Callable[[Any, Any], Any]
#: The user's way to run a model on a batch.
Run = Callable[[Any, Any], Any]
FEWEST = 16  # labels of which an order is no chance


@dataclass(frozen=True)
class Call:
    """Call of a module, and the user's batch that it was made of."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batch: Any

    @property
    def size(self) -> int:
        """Number of samples."""
        return batch_inputs.size(self.batch)


@dataclass(frozen=True)
class UserData:
    """Batches of a user as calls of `module`; each iteration draws them anew.

    `forward` runs a model on a batch, where the signature of the module does not show how. Batches are moved to
    `device`. Inputs are passed as those of `example`, if there is one.
    """

    module: nn.Module | Program
    data: Iterable[Any] | Callable[[], Iterable[Any]]
    forward: Run | None = None
    device: torch.device | str = "cpu"
    example: Inputs | None = None
    _parameters: Forward = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parameters", Forward.of(self.module))

    @classmethod
    def of(
        cls,
        module: nn.Module | Program,
        data: Any,
        forward: Run | None = None,
        *,
        device: torch.device | str | None = None,
        example: Inputs | None = None,
    ) -> "UserData":
        """Adapt any iterable of batches (a DataLoader, a list, a function that returns an iterator) to a module.

        The device is that of the module by default. Batches of a program are passed as its own example inputs.

        Raises:
            CalibrationError: if `data` is no iterable of batches.
        """
        _require_batches(data)
        if isinstance(module, nn.Module):
            module = unwrapped(module)
        elif example is None:
            example = module.inputs
        return cls(module, data, forward, device if device is not None else _device(module), example)

    def __iter__(self) -> Iterator[Call]:
        """Calls of one pass over the data.

        Raises:
            CalibrationError: if there is no batch, or one cannot be read or does not fit the module.
        """
        first, number = None, 0
        for number, batch in enumerate(self._batches(), 1):
            first = first if first is not None else form(batch)
            if form(batch) != first:
                raise CalibrationError(
                    f"batch {number - 1} is {described(batch)}, unlike the first one; expected batches of one form: "
                    "collate them alike, or leave out those that differ"
                )
            yield self.call(moved(batch, self.device))
        if not number:
            one_pass = " or it is an iterator that was read before" if isinstance(self.data, Iterator) else ""
            raise CalibrationError(
                f"the data has no batch: it is empty{one_pass}; pass a DataLoader or a list of batches, or a function "
                "that returns a new iterator"
            )
        self._require_length(number)

    def calls(self, most: int | None = None, samples: int | None = None) -> list[Call]:
        """Calls of the first batches: at most `most`, and no more than are needed for `samples` samples.

        Warns if the labels show that the data is sorted by them.

        Raises:
            CalibrationError: see `__iter__`.
        """
        taken, count = list[Call](), 0
        for call in self:
            taken.append(call)
            count += call.size
            if len(taken) == most or (samples is not None and count >= samples):
                break
        _warn_of_order(taken)
        return taken

    def call(self, batch: Any) -> Call:
        """Call of the module for a batch.

        Raises:
            CalibrationError: if the batch does not fit the module.
        """
        if self.forward is not None:
            inputs = _recorded(self.module, self.forward, batch)
        else:
            inputs = self._parameters.fitting(self._parameters.inputs(batch), batch)
        args, kwargs = self._parameters.arranged(inputs, self.example) if self.example is not None else inputs
        return Call(args, kwargs, batch)

    def output(self, model: Any, batch: Any) -> Any:
        """Output of `model`, which is called like the module, for a batch: what the user's loss and metric take."""
        batch = moved(batch, self.device)
        if self.forward is not None:
            return self.forward(model, batch)
        call = self.call(batch)
        return model(*call.args, **call.kwargs)

    def loss(self, loss: OfBatch, calls: Sequence[Call]) -> Callable[[Any, int], Tensor]:
        """Loss of the output of the module for one of `calls`, by its number.

        It raises a CalibrationError if the user's loss fails, or is no finite scalar that depends on the output.
        """

        def of_number(output: Any, number: int) -> Tensor:
            batch = calls[number].batch
            return checked_loss(loss, self.finished(output, batch), batch)

        return of_number

    def finished(self, output: Any, batch: Any) -> Any:
        """Output of the user's `forward` for a batch, where the module has returned `output`."""
        return output if self.forward is None else self.forward(_Answer(self.module, output), batch)

    def mean(self, metric: OfBatch, model: nn.Module, calls: Iterable[Call] | None = None) -> float:
        """Mean of a metric over the samples of `calls`, or of all data, with `model` in evaluation mode.

        Raises:
            CalibrationError: if the metric fails, or is no number.
        """
        values = self.values(metric, model, calls)
        return sum(value * size for value, size in values) / max(sum(size for _, size in values), 1)

    def values(self, metric: OfBatch, model: nn.Module, calls: Iterable[Call] | None = None) -> list[tuple[float, int]]:
        """Metric of every batch, and the number of its samples; see `mean`.

        Raises:
            CalibrationError: if the metric fails, or is no number.
        """
        measured = list[tuple[float, int]]()
        with torch.no_grad(), evaluation_mode(model), preserved_state(model):
            for call in self if calls is None else calls:
                output = self.output(model, call.batch) if self.forward else model(*call.args, **call.kwargs)
                measured.append((_number(metric, output, call.batch), call.size))
                if not math.isfinite(measured[-1][0]) and all(math.isfinite(value) for value, _ in measured[:-1]):
                    log.warning("the metric is %s on the batch %s", measured[-1][0], described(call.batch))
        return measured

    def require_running(self, call: Call) -> None:
        """Run the module on one call.

        Raises:
            CalibrationError: if its forward does not take it.
        """
        if not isinstance(self.module, nn.Module):
            return
        try:
            with torch.no_grad(), evaluation_mode(self.module), preserved_state(self.module):
                self.module(*call.args, **call.kwargs)
        except Exception as fault:  # code of a user may raise anything
            names = ", ".join([*map(described, call.args), *(f"{n}={described(v)}" for n, v in call.kwargs.items())])
            raise CalibrationError(
                f"{type(self.module).__name__} does not run on the batch {described(call.batch)}, from which its "
                f"forward got ({names}){because(fault)}; pass batches that it takes, or {FORWARD}"
            ) from fault

    def _batches(self) -> Iterator[Any]:
        """Batches of the user; errors of a loader name the number of the batch."""
        number = 0
        try:
            source = iter(self.data() if callable(self.data) else self.data)
            for batch in source:
                yield batch
                number += 1
        except (CalibrationError, GeneratorExit):
            raise
        except Exception as fault:  # code of a user may raise anything
            raise CalibrationError(f"batch {number} of the data cannot be read{because(fault)}") from fault

    def _require_length(self, number: int) -> None:
        """Check that the data had as many batches as its length says."""
        try:
            expected = len(self.data)  # type: ignore[arg-type]
        except TypeError:
            return
        if number < expected:
            raise CalibrationError(
                f"the data ended after {number} of {expected} batches, which its length promises; correct its "
                "__len__, or the worker that stops early"
            )


def checked_loss(loss: OfBatch, output: Any, batch: Any) -> Tensor:
    """Loss of an output, if it is a finite scalar, and has gradients where they are enabled.

    Raises:
        CalibrationError: if it is not, or the loss fails.
    """
    try:
        value = loss(output, batch)
    except Exception as fault:  # code of a user may raise anything
        raise CalibrationError(
            f"the loss fails{because(fault)}: the output is {described(output)}, the batch {described(batch)}; "
            "expected a function of both that returns a scalar, as loss=lambda output, batch: cross_entropy(output, "
            "batch[1]), with labels in the range of the outputs"
        ) from fault
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise CalibrationError(
            f"the loss is {described(value)}, expected a tensor with one number: take its mean over the batch"
        )
    if not torch.isfinite(value).all():
        raise CalibrationError(
            f"the loss is {value.item()} on the batch {described(batch)}, expected a finite number; check the labels, "
            "and the outputs of the dense model"
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        raise CalibrationError(
            "the loss does not depend on the output by operations that have gradients; omit detach(), item() and "
            "argmax(), or pass it as metric="
        )
    return value.reshape(())


def _number(metric: OfBatch, output: Any, batch: Any) -> float:
    try:
        value = metric(output, batch)
        return float(value.float().mean() if isinstance(value, Tensor) and value.dim() else value)
    except Exception as fault:  # code of a user may raise anything
        raise CalibrationError(
            f"the metric fails{because(fault)}: the output is {described(output)}, the batch {described(batch)}; "
            "expected metric(output, batch) that returns one number, or one for each sample"
        ) from fault


class _Stop(BaseException):
    """Raised by a recorder, so that the module itself does not run."""


@dataclass
class _Recorder:
    """Stand-in for a module that records its call."""

    module: Any
    inputs: Inputs | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.inputs = args, kwargs
        raise _Stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@dataclass
class _Answer:
    """Stand-in for a module that returns a known output."""

    module: Any
    output: Any
    called: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.called:
            raise CalibrationError(
                "forward= calls the model more than once for a batch; expected one call, so that its output is known"
            )
        self.called = True
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _recorded(module: nn.Module | Program, forward: Run, batch: Any) -> Inputs:
    """Inputs of the call that the user's `forward` makes for a batch."""
    recorder = _Recorder(module)
    try:
        forward(recorder, batch)
    except _Stop:
        pass
    except Exception as fault:  # code of a user may raise anything
        raise CalibrationError(
            f"forward= fails on the batch {described(batch)}{because(fault)}; expected a function that calls the "
            "model, as in forward=lambda model, batch: model(batch[0])"
        ) from fault
    if recorder.inputs is None:
        raise CalibrationError(
            "forward= does not call the model, as in forward=lambda model, batch: model(batch[0]); methods of the "
            "model cannot be pruned by themselves: pass the submodule that they call"
        )
    return recorder.inputs


def _require_batches(data: Any) -> None:
    """Refuse what is no iterable of batches."""
    advice = "pass a DataLoader or a list of batches"
    if isinstance(data, Tensor | Mapping | str | bytes):
        raise CalibrationError(f"data is {described(data)}, expected an iterable of batches: for one batch, pass [it]")
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise CalibrationError(
            f"data is the dataset {type(data).__name__}, which has samples and no batches; pass "
            "DataLoader(dataset, batch_size=32, shuffle=True)"
        )
    if not callable(data) and not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise CalibrationError(f"data is {described(data)}, expected an iterable of batches: {advice}")


def _device(module: nn.Module | Program) -> torch.device:
    """Device of a module's first parameter."""
    first = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def _warn_of_order(calls: Sequence[Call]) -> None:
    """Warn if the labels show that the data is sorted by them."""
    known = [_labels(call) for call in calls]
    if not known or any(labels is None for labels in known):
        return
    labels = torch.cat([part.cpu() for part in known if part is not None])
    if len(labels) < FEWEST or bool((labels.diff() < 0).any()):
        return
    one = int(labels[0]) == int(labels[-1])
    what = f"all {len(labels)} labels are {int(labels[0])}" if one else f"the {len(labels)} labels ascend"
    log.warning(
        "the data seems to be sorted by label: in the batches that are used, %s; shuffle it, as "
        "DataLoader(dataset, shuffle=True) does, because scores and refits see these batches only",
        what,
    )


def _labels(call: Call) -> Tensor | None:
    """Labels of a batch: whole numbers, one a sample, that are no input of the module or are named so."""
    inputs = {id(value) for value in (*call.args, *call.kwargs.values())}
    for key, value in batch_inputs.leaves(call.batch):
        whole = not value.is_floating_point() and not value.is_complex() and value.dim() == 1
        if whole and len(value) == call.size and (id(value) not in inputs or key in LABELS):
            return value
    return None
