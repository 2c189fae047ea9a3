"""Examples from the user's data, any iterable of batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import nn

from graphprune.errors import CalibrationError
from graphprune.healing.examples import Batch
from graphprune.healing.heal_options import HealOptions
from graphprune.healing.training_run import TrainingSource
from graphprune.statistics.user_data import UserData


@dataclass(frozen=True)
class UserExamples:
    """Batches of the user's data, `parts` of them a step, and held-out ones; each pass draws them anew."""

    data: UserData
    validation: UserData | None
    parts: int
    most: int  # held-out batches
    unit: str = "samples"

    def steps(self, start: int, share: range) -> Iterator[list[Batch]]:
        """Endless batches; every process reads its own loader."""
        stream = self._endless()
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
        while True:
            for call in self.data:
                yield Batch(call.batch, None, call.size)


def user_source(options: HealOptions, module: nn.Module, teacher: nn.Module | None) -> TrainingSource:
    """Source of the batches of the user.

    Raises:
        CalibrationError: if there is no batch, or the module or its teacher does not take the batches.
    """
    data = UserData.of(module, options.data, options.forward, device=options.device)
    validation = options.validation
    if validation is not None:
        validation = UserData.of(module, validation, options.forward, device=options.device)
    first = data.calls(1)[0]
    for one in (module, teacher):
        if one is not None:
            UserData.of(one, options.data, options.forward).require_running(first)
    try:
        batches = len(options.data)
    except TypeError:
        batches = sum(1 for _ in data)
    examples = UserExamples(data, validation, options.accumulate, options.held_out)
    steps = -(-batches * (options.epochs or 1) // options.accumulate)
    held = sum(1 for _ in examples.held_out())
    return TrainingSource(
        examples, steps, steps * options.accumulate * first.size, (batches, held), (first.args, first.kwargs)
    )
