"""Examples from the user's data, any iterable of batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphprune.errors import CalibrationError
from graphprune.execution.module_state import seeded
from graphprune.healing.data.examples import Batch
from graphprune.healing.heal_options import HealOptions
from graphprune.healing.training_run import TrainingSource
from graphprune.ir.checksums import checksum
from graphprune.statistics.batch_inputs import described
from graphprune.statistics.user_data import Call, UserData


@dataclass(frozen=True)
class UserExamples:
    """Batches of the user's data, `parts` of them a step, and held-out ones; each pass draws them anew.

    Random numbers are seeded anew for every batch, so that a training that continues gets what an uninterrupted one
    does: the batches before its first step are drawn again and passed over.
    """

    data: UserData
    validation: UserData | None
    parts: int
    most: int  # held-out batches
    seed: int = 0
    unit: str = "samples"

    def steps(self, start: int, share: range) -> Iterator[list[Batch]]:
        """Endless batches from a step on; every process reads its own loader."""
        stream = self._endless()
        for _ in range(start * self.parts):
            next(stream)
        while True:
            yield list(islice(stream, self.parts))

    def held_out(self) -> Iterator[Batch]:
        """Held-out batches."""
        for call in islice(self.validation, self.most) if self.validation is not None else ():
            yield Batch(call.batch, None, call.size)

    def output(self, model: nn.Module, batch: Batch, **options: Any) -> Any:
        """Output of a model on a batch.

        Raises:
            CalibrationError: if a `forward` of the user cannot take the options.
        """
        if not options:
            return self.data.output(model, batch.inputs)
        if self.data.forward is not None:
            raise CalibrationError("hidden states need a call without forward=; use aim='outputs' or 'logits'")
        call = self.data.call(batch.inputs)
        return model(*call.args, **call.kwargs, **options)

    def _endless(self) -> Iterator[Batch]:
        drawn = count(self.seed * 1_000_003)
        while True:
            calls = iter(self.data)
            while (call := self._next(calls, next(drawn) % 2**32)) is not None:
                yield Batch(call.batch, None, call.size)

    def _next(self, calls: Iterator[Call], draw: int) -> Call | None:
        with seeded(draw):
            return next(calls, None)


def identity_of_batches(options: HealOptions, module: nn.Module) -> dict[str, Any]:
    """Identity of a user's objects, which a training depends on: checksums of the first batches, names of functions."""
    identity: dict[str, Any] = {}
    for name in ("data", "validation"):
        if (data := getattr(options, name)) is not None:
            with seeded(options.seed):
                first = UserData.of(module, data, options.forward).calls(1)[0].batch
            tensors = [leaf for leaf in pytree.tree_leaves(first) if isinstance(leaf, Tensor)]
            identity[name] = f"{described(first)} {checksum(tensors)}"
    for name in ("loss", "forward"):
        if (function := getattr(options, name)) is not None:
            identity[name] = getattr(function, "__qualname__", type(function).__name__)
    for name, model in (("pruned", module), ("teacher", options.teacher)):
        if isinstance(model, nn.Module):
            identity[name] = f"{type(model).__name__} {checksum([*model.state_dict().values()])}"
    return identity


def user_source(options: HealOptions, module: nn.Module, teacher: nn.Module | None) -> TrainingSource:
    """Source of the batches of the user.

    Raises:
        CalibrationError: if there is no batch, or the module or its teacher does not take those of data or validation.
    """
    data = UserData.of(module, options.data, options.forward, device=options.device)
    validation = options.validation
    if validation is not None:
        validation = UserData.of(module, validation, options.forward, device=options.device)
    first = data.calls(1)[0]
    for call in (first, *islice(validation or (), 1)):
        for one in (module, teacher):
            if one is not None:
                UserData.of(one, options.data, options.forward).require_running(call)
    try:
        batches = len(options.data)
    except TypeError:
        batches = sum(1 for _ in data)
    examples = UserExamples(data, validation, options.accumulate, options.held_out, options.seed)
    steps = -(-batches * (options.epochs or 1) // options.accumulate)
    held = sum(1 for _ in examples.held_out())
    return TrainingSource(
        examples, steps, steps * options.accumulate * first.size, (batches, held), (first.args, first.kwargs)
    )
