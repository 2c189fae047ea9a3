"""How many parameters are to go, and how many go at given widths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod

from graphprune.dependencies import Dependencies, Group
from graphprune.errors import PlanError
from graphprune.kept import width


@dataclass(frozen=True, eq=False)
class Knob:
    """Groups that must keep equal widths, and the step in which their width may change."""

    groups: tuple[Group, ...]
    step: int

    @classmethod
    def of(cls, groups: Sequence[Group], align: int) -> "Knob":
        """Groups of one width such that the dimensions they stand in are multiples of `align`."""
        inner = gcd(*(group.inner for group in groups))
        return cls(tuple(groups), align // gcd(align, inner))

    @property
    def size(self) -> int:
        """The width before any cut."""
        return self.groups[0].size

    @property
    def least(self) -> int:
        """The smallest width: one step, or the whole where that is smaller."""
        return min(self.step, self.size)


@dataclass(frozen=True)
class Budget:
    """`target` parameters are to go from the groups of `knobs`."""

    dependencies: Dependencies
    knobs: Sequence[Knob]
    target: int
    parameters: frozenset[str]

    @cached_property
    def touched(self) -> Mapping[str, tuple[int, ...]]:
        """The parameters in which any of the groups stands."""
        names = {p.parameter for knob in self.knobs for g in knob.groups for p in g.places}
        return {n: tuple(a.size for a in self.dependencies.tensors[n]) for n in sorted(names & self.parameters)}

    def removed(self, widths: Mapping[str, float]) -> float:
        """How many parameters are gone when the named groups have these widths, fractions allowed."""
        by_prime = {self.dependencies.by_name[name].prime: size for name, size in widths.items()}
        left = (prod(width(axis, by_prime) for axis in self.dependencies.tensors[name]) for name in self.touched)
        return sum(map(prod, self.touched.values())) - sum(left)

    def widths(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Fractional widths at these shares, not below the smallest ones."""
        pairs = ((knob, group) for knob in self.knobs for group in knob.groups)
        return {g.name: max(knob.least, shares[g.name] * g.size) for knob, g in pairs}

    @cached_property
    def most(self) -> int:
        """The most parameters that can go."""
        return int(self.removed({g.name: knob.least for knob in self.knobs for g in knob.groups}))

    def solve(self, shares_at: Callable[[float], Mapping[str, float]]) -> Mapping[str, float]:
        """The shares at the pressure, from 0 to 1, at which the target is met; found by bisection.

        Raises:
            PlanError: if the target lies beyond what the groups can give.
        """
        if self.target > self.most:
            total = self.total
            raise PlanError(
                f"the target is to remove {self.target:,} parameters ({self.target / total:.1%}), but the free groups "
                f"hold at most {self.most:,} ({self.most / total:.1%}) that can go; ask for less, protect less, lower "
                "the alignment, or choose a destination that allows more"
            )
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            enough = self.removed(self.widths(shares_at(middle))) >= self.target
            low, high = (low, middle) if enough else (middle, high)
        return shares_at(high)

    @cached_property
    def total(self) -> int:
        """All parameters of the model."""
        return sum(prod(a.size for a in self.dependencies.tensors[name]) for name in self.parameters)
