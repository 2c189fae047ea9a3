"""Facts that passes add to a program for later ones."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.ir.program import Program
from graphprune.ir.weights import Layered, Weights
from graphprune.planning.destination import Destination
from graphprune.planning.interfaces import Refitted
from graphprune.statistics.moments import (
    FactorGradients,
    FullMoments,
    GradientSums,
    OutputGradients,
    ParameterGradients,
    ProducerMoments,
    Statistics,
)


@dataclass(frozen=True)
class Followable:
    """Cuts that the captured module can follow without padding: all except the `refused` kinds of groups.

    `refused` holds the reasons. The groups of each tuple in `tied` must have one width, because the code of the module
    reads one size for all of them. Other kinds than `kinds` were not tried.
    """

    refused: Mapping[str, str]
    tied: tuple[tuple[str, ...], ...]
    kinds: frozenset[str]


@dataclass(frozen=True)
class Eligible:
    """The groups that may be cut for a destination, and the reasons why other kinds may not.

    `widths` holds the allowed widths of those kinds that the destination restricts. The kinds of each of the `families`
    have one width, which the same fields of the configuration set; so have the groups of each tuple in `tied`.
    `requested` has the widths of groups that are not to be chosen, by name, and `removed` the indices to remove, where
    these are not to be chosen either.
    """

    groups: Sequence[Group]
    destination: Destination
    refused: Mapping[str, str]
    widths: Mapping[str, Collection[int]]
    families: tuple[tuple[str, ...], ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()
    requested: Mapping[str, int] = field(default_factory=dict)
    removed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def among(self, groups: Iterable[Group]) -> tuple[Group, ...]:
        """These groups without those that are tied to others, which would remain wider."""
        names = {group.name: group for group in groups}
        broken = {name for tie in self.tied if not names.keys() >= {*tie} for name in tie}
        return tuple(group for name, group in names.items() if name not in broken)


@dataclass(frozen=True)
class Scores:
    """The scores of the indices of every scored group, shape (rows, size), and the method that computed them."""

    by_group: Mapping[str, Tensor]
    method: str


@dataclass(frozen=True)
class Shares:
    """The retained share of every group, and the amount of a unit to remove, if there is such a target."""

    by_group: Mapping[str, float]
    target: int | None
    unit: str = "parameters"


@dataclass(frozen=True)
class Refits:
    """The refits of all weights of consumers, the weights without a refit with the reason, and all weights `before`.

    `biases` names, by weight, the changed and new biases; new ones are zero before. `tuned` names what later passes
    set, such as running statistics and rounded weights, `reduced` the weights that got a lower rank, and `merged` those
    to which removed experts were merged.
    """

    by_weight: Mapping[str, Refitted]
    skipped: Mapping[str, str]
    before: Weights
    biases: Mapping[str, str] = field(default_factory=dict)
    tuned: tuple[str, ...] = ()
    reduced: frozenset[str] = frozenset()
    merged: frozenset[str] = frozenset()

    @property
    def changed(self) -> set[str]:
        """The names of all parameters with new values."""
        return {*self.by_weight, *self.biases.values(), *self.tuned}


def with_tuned(
    program: Program, changed: Mapping[str, Tensor], skipped: Mapping[str, str] = MappingProxyType({})
) -> Program:
    """Program with new values of weights by name that a pass set after the refit, and weights that it skipped."""
    refits = program.facts.get(Refits) or Refits({}, {}, program.weights)
    names = tuple(sorted({*refits.tuned, *changed}))
    refits = replace(refits, tuned=names, skipped={**refits.skipped, **skipped})
    return program.with_facts(refits, weights=Layered((changed, program.weights)))


@dataclass(frozen=True)
class RoundedWeights:
    """The format that weights were rounded to, and the weights that were not rounded with the reason.

    `by_weight` has the relative change of the outputs of its layer: by this rounding, and by rounding to nearest.
    """

    to: str
    by_weight: Mapping[str, tuple[float, float]]
    left: Mapping[str, str]

    def notes(self) -> tuple[str, ...]:
        """Description of the change, and of the weights that were not rounded."""
        count = max(len(self.by_weight), 1)
        own, nearest = (sum(pair[i] for pair in self.by_weight.values()) / count for i in (0, 1))
        changes = (
            f"rounded {len(self.by_weight)} weights to {self.to}: outputs of their layers change by {own:.2%} on "
            f"average, by {nearest:.2%} if rounded to nearest"
        )
        return changes, *(f"{name} was not rounded: {why}" for name, why in self.left.items())


@dataclass(frozen=True)
class RefittedNorm:
    """The names of the parameters of the last norm that have new values.

    `before` and `after` are the divergence of the predictions from those of the dense model, in nats per token of
    held-out calibration windows. `left` is the reason why a language model has no new values.
    """

    names: tuple[str, ...] = ()
    before: float = 0.0
    after: float = 0.0
    left: str = ""

    def notes(self) -> tuple[str, ...]:
        """Description of the change; none for a model that is no language model."""
        if self.left:
            return (f"the last norm was not refitted: {self.left}",)
        change = (
            f"refitted {', '.join(self.names)}: the divergence from the dense predictions on held-out windows "
            f"{self.before:.4f} -> {self.after:.4f} nats a token"
        )
        return (change,) if self.names else ()


#: Facts about new values of weights, which hold in a later graph, too.
OF_WEIGHTS = (Refits, RefittedNorm, RoundedWeights)
#: Facts about the axes and layers of one graph, invalid for any other.
OF_ONE_GRAPH = (
    Dependencies,
    Eligible,
    Statistics,
    FullMoments,
    ProducerMoments,
    GradientSums,
    ParameterGradients,
    OutputGradients,
    FactorGradients,
    Scores,
    Shares,
)
