"""Masks of the indices of groups that are learned with the weights, and the budget that they have to meet.

A mask multiplies the columns of all linear layers that contract an index (as in DPP and BESA, arXiv:2402.16880, but in
the user's own training loop). It is a sigmoid, stretched beyond 0 and 1 and clamped, so that it can reach both; as
``hard-concrete`` (arXiv:1712.01312) it is sampled in training mode.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from graphprune.axes.groups import Group
from graphprune.errors import TrainingError, choices
from graphprune.planning.budget import Budget
from graphprune.planning.facts import Scores
from graphprune.planning.index_scores import rows_of
from graphprune.support.distributed import world_size
from graphprune.training.coupled_weights import CoupledWeights, Positions

KINDS = ("sigmoid", "hard-concrete")
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
OPEN = 2.5  # the first logit, at which a stretched mask is exactly one
ADAM = ("step", "exp_avg", "exp_avg_sq")
RISE = 1.0  # of the multiplier of the budget in a step, for each unit of the gap


@dataclass
class LearnedMasks:
    """Masks of a `kind` on the groups of a module; logits have the shape (rows, size).

    `rate` is the learning rate of the logits, `target` the share of the budget that must remain, `multiplier` the
    current weight of the gap to it.
    """

    kind: str = "sigmoid"
    rate: float = 0.05
    logits: dict[str, Tensor] = field(default_factory=dict)
    multiplier: float = 0.0
    target: float = 1.0
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TrainingError(f"no masks of kind {self.kind!r}; {choices(self.kind, KINDS)}")
        self._places: list[tuple[nn.Module, str]] = []
        self._optimizer: torch.optim.Adam | None = None

    def attach(self, weights: CoupledWeights, budget: Budget, target: float, whole: int) -> None:
        """Multiply the columns that contract each group by its masks; `target` is a share of the `whole` budget.

        Raises:
            TrainingError: if no group can have masks.
        """
        groups = {group.name: group for group in weights.groups if _layers(group, weights)}
        if not groups:
            raise TrainingError(
                "no group has masks: linear layers and convolutions must contract it; use a regularizer"
            )
        self._weights, self._budget, self._whole, self.target = weights, budget, whole, target
        shapes = {name: (rows_of(g, weights.dependencies), g.size) for name, g in groups.items()}
        device = next(weights.module.parameters()).device
        known = {name: logit for name, logit in self.logits.items() if shapes.get(name) == tuple(logit.shape)}
        new = {name: known.get(name, torch.full(shape, OPEN)) for name, shape in shapes.items()}
        self.logits = {name: logit.detach().to(device).requires_grad_() for name, logit in new.items()}
        self._optimizer = torch.optim.Adam(list(self.logits.values()), self.rate)
        gates: dict[str, list[tuple[str, Positions]]] = {}
        for name, group in groups.items():
            for weight, positions in _layers(group, weights):
                gates.setdefault(weight, []).append((name, positions))
        for weight, masked in gates.items():
            path, _, leaf = weight.rpartition(".")
            layer = weights.module.get_submodule(path)
            parametrize.register_parametrization(layer, leaf, _MaskedColumns(self, masked), unsafe=True)
            self._places.append((layer, leaf))

    @property
    def attached(self) -> bool:
        """Whether they multiply weights now."""
        return bool(self._places)

    def value(self, name: str, sampled: bool = False) -> Tensor:
        """Masks of a group, shape (rows, size)."""
        logits = self.logits[name]
        if sampled and self.kind == "hard-concrete" and not self.fixed:
            noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = (logits + noise.log() - (-noise).log1p()) / TEMPERATURE
        return (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0, 1)

    def probabilities(self, name: str) -> Tensor:
        """Probabilities that masks are open, or their distance from being closed, shape (rows, size)."""
        shift = TEMPERATURE * math.log(-LOW / HIGH) if self.kind == "hard-concrete" else 0.0
        return torch.sigmoid(self.logits[name] - shift)

    def penalty(self) -> Tensor:
        """Penalty of the budget that the masks retain beyond the target."""
        primes = {name: self._weights.dependencies.by_name[name].prime for name in self.logits}
        widths: Any = {prime: self.probabilities(name).sum(1).mean() for name, prime in primes.items()}
        amount: Any = sum(term.at(widths) for term in self._budget.terms)
        gap = amount / self._whole - self.target
        self.multiplier = max(0.0, self.multiplier + RISE * float(gap.detach()))
        loss: Tensor = self.multiplier * gap + gap.clamp(min=0).square()
        return loss

    def step(self) -> None:
        """Update the logits; called after each step of the user's optimizer."""
        if self._optimizer is None or not self._places:
            return
        for logit in self.logits.values():
            gradient = torch.zeros_like(logit) if logit.grad is None else logit.grad
            if world_size() > 1:  # no wrapper averages them
                dist.all_reduce(gradient)
            logit.grad = gradient if bool(torch.isfinite(gradient).all()) else None
        self._optimizer.step()
        self._optimizer.zero_grad()

    def scores(self) -> Scores:
        """Probabilities as scores of the indices."""
        tables = {name: self.probabilities(name).detach().double().cpu() for name in self.logits}
        return Scores(tables, "masks")

    @contextmanager
    def baked(self) -> Iterator[None]:
        """Multiply the masks into the weights, without parametrizations, for the block; after an error, undo it."""
        places, self._places, self.fixed = self._places, [], True
        masked: list[tuple[nn.Module, str, Any, Tensor]] = []
        for layer, leaf in places:
            own: Any = layer.parametrizations
            masked.append((layer, leaf, own[leaf][0], own[leaf].original.detach().clone()))
            parametrize.remove_parametrizations(layer, leaf, leave_parametrized=True)
        try:
            yield
        except BaseException:
            for layer, leaf, gate, before in masked:
                with torch.no_grad():
                    getattr(layer, leaf).set_(before)
                parametrize.register_parametrization(layer, leaf, gate, unsafe=True)
            self._places = places
            raise
        finally:
            self.fixed = False

    def state(self) -> dict[str, Tensor]:
        """Tensors from which a resumed run continues: logits, the state of their optimizer, and the multiplier."""
        tensors = {f"logits.{name}": logit.detach().clone() for name, logit in self.logits.items()}
        tensors["multiplier"] = torch.tensor(self.multiplier, dtype=torch.float64)
        for name, logit in self.logits.items():
            moments = self._optimizer.state.get(logit, {}) if self._optimizer else {}
            tensors |= {f"moments.{key}.{name}": torch.as_tensor(value).clone() for key, value in moments.items()}
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of `state`, on the same groups.

        Raises:
            TrainingError: if they are of other groups.
        """
        for name, logit in self.logits.items():
            stored = tensors.get(f"logits.{name}")
            if stored is None or stored.shape != logit.shape:
                raise TrainingError(f"the state has no masks of group {name} of shape {tuple(logit.shape)}")
        self.multiplier = float(tensors.get("multiplier", torch.zeros(())))
        for name, logit in self.logits.items():
            logit.copy_(tensors[f"logits.{name}"])
            moments = {key: tensors[f"moments.{key}.{name}"] for key in ADAM if f"moments.{key}.{name}" in tensors}
            if moments and self._optimizer is not None:
                self._optimizer.state[logit] = {key: value.clone() for key, value in moments.items()}

    def narrow(self, retained: Mapping[str, tuple[tuple[int, ...], ...]]) -> None:
        """Cut the logits like their groups."""
        for name, rows in retained.items():
            if name in self.logits:
                logits = self.logits[name].detach()
                index = torch.tensor(rows, device=logits.device).expand(len(logits), -1)
                self.logits[name] = logits.gather(1, index)


class _MaskedColumns(nn.Module):
    """Parametrization of a weight by the masks of the groups in its columns."""

    def __init__(self, masks: LearnedMasks, groups: list[tuple[str, Positions]]) -> None:
        super().__init__()
        self.masks, self.groups = masks, groups

    def forward(self, weight: Tensor) -> Tensor:
        for name, positions in self.groups:
            weight = weight * positions.factors(self.masks.value(name, self.training), weight)
        return weight


def _layers(group: Group, weights: CoupledWeights) -> list[tuple[str, Positions]]:
    """Weights whose columns contract a group, if masks can multiply all of them."""
    consumers, masked = weights.dependencies.consumers_of(group), weights.contracted(group)
    tied = {*weights.program.ties, *weights.program.ties.values()}
    layers = [weights.module.get_submodule(c.weight.rpartition(".")[0]) for c in consumers]
    fits = all(isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) for layer in layers)
    if len(masked) < len(consumers) or weights.dependencies.members_of(group) or not fits:
        return []
    return [] if any(c.weight in tied for c in consumers) else [(c.weight, at) for c, at in masked]
