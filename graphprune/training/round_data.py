"""Data of a round: batches drawn anew from the user's loader, equal in all processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphprune.execution.module_state import seeded
from graphprune.ir.program import Inputs, Program
from graphprune.statistics.user_data import Call, UserData
from graphprune.training import replicas


@dataclass(frozen=True)
class RoundData:
    """Batches of a user for the rounds of `module`: about `samples` samples in each, by a `seed`."""

    module: nn.Module
    data: Any
    loss: Any
    forward: Any
    samples: int = 128
    seed: int = 0

    def example(self) -> Inputs:
        """Inputs of the first batch; none without data.

        Raises:
            CalibrationError: if the data is empty, or does not fit the module.
        """
        if self.data is None:
            return (), {}
        with seeded(self.seed):
            (call,) = UserData.of(self.module, self.data, self.forward).calls(1)
        return call.args, dict(call.kwargs)

    def options(self, program: Program, number: int) -> Mapping[str, Any]:
        """Options of `graphprune.plan` with the batches of a round, and the loss of their outputs.

        Raises:
            CalibrationError: if the data is empty, ends early, or does not fit the module.
        """
        if self.data is None:
            return {"loss": self.loss} if self.loss is not None else {}
        user, own = replicas.agreed(lambda: self._calls(program, number))
        calls = replicas.gathered(own, user.device)
        batches = tuple((call.args, pytree.tree_map_only(Tensor, Tensor.detach, dict(call.kwargs))) for call in calls)
        return {"batches": batches} | ({"loss": user.loss(self.loss, calls)} if self.loss is not None else {})

    def _calls(self, program: Program, number: int) -> tuple[UserData, list[Call]]:
        """The data, and the calls of this process in a round."""
        user = UserData.of(self.module, self.data, self.forward, example=program.inputs)
        with seeded(self.seed + number):  # the training draws what it would without a pruner
            return user, user.calls(samples=self.samples)
