"""How much is to go, and how much goes at given widths."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, lcm

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Dependencies, Group, Term
from graphprune.errors import PlanError, choices

#: What a budget may be in, and how that is called.
UNITS = {
    "parameters": "parameters",
    "macs": "multiply-accumulates of an example input",
    "kv_cache": "bytes of key/value cache a token",
    "latency": "nanoseconds of a run",
}


def require_unit(name: str) -> None:
    """Refuse a unit that is none.

    Raises:
        PlanError: if there is no such unit.
    """
    if name not in UNITS:
        raise PlanError(f"no budget in {name!r}; {choices(name, UNITS)}")


@dataclass(frozen=True, eq=False)
class Knob:
    """Groups that must keep equal widths, and the widths that are legal for them, in order, the old one last."""

    groups: tuple[Group, ...]
    legal: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Group], align: int = 1, allowed: Collection[int] | None = None) -> "Knob":
        """Groups whose dimensions shall be multiples of `align`, at widths among `allowed` if that is given."""
        size = groups[0].size
        step = lcm(align // gcd(align, *(group.inner for group in groups)), *(group.unit for group in groups))
        least = max(group.least for group in groups)
        narrower = (w for w in range(step, size, step) if w >= least and (allowed is None or w in allowed))
        return cls(tuple(groups), (*narrower, size))

    @property
    def size(self) -> int:
        """The width before any cut."""
        return self.legal[-1]

    @property
    def least(self) -> int:
        """The smallest legal width."""
        return self.legal[0]

    def floor(self, width: float) -> int:
        """The greatest legal width that is not above `width`; the smallest if none is."""
        return self.legal[max(bisect_right(self.legal, width + 1e-6) - 1, 0)]

    def step(self, width: int, way: int) -> int:
        """The next legal width above (`way` 1) or below (-1) a legal one; itself at the ends."""
        at = self.legal.index(width) + way
        return self.legal[min(max(at, 0), len(self.legal) - 1)]


@dataclass(frozen=True)
class Budget:
    """So much is to go from the groups of `knobs`: `target` parameters, or another `unit` (see `UNITS`)."""

    dependencies: Dependencies
    knobs: Sequence[Knob]
    target: int
    parameters: frozenset[str]
    unit: str = "parameters"

    @cached_property
    def terms(self) -> Sequence[Term]:
        """All that is summed up."""
        if self.unit == "parameters":
            return [Term(self.dependencies.tensors[name]) for name in sorted(self.parameters)]
        if self.unit not in self.dependencies.terms:
            raise PlanError("nothing is known of latencies; put measure-latency before allocate")
        return self.dependencies.terms[self.unit]

    def removed(self, widths: Mapping[str, float]) -> float:
        """How much is gone when the named groups have these widths, fractions allowed."""
        touched = sorted({i for knob in self.knobs for i in self._terms_of(knob)})
        return self._left(touched, {}) - self._left(touched, widths)

    def difference(self, knob: Knob, old: Mapping[str, float], new: Mapping[str, float]) -> float:
        """How much more is gone at the widths `new` than at `old`, where both differ in `knob` alone."""
        touched = self._terms_of(knob)
        return self._left(touched, old) - self._left(touched, new)

    def price(self, knob: Knob) -> float:
        """How much goes with one index of a knob, all others at their full widths."""
        full, none = ({g.name: size for g in knob.groups} for size in (knob.size, 0))
        return self.difference(knob, full, none) / knob.size

    def _terms_of(self, knob: Knob) -> list[int]:
        """The places of the terms in which a group of the knob stands."""
        return sorted({i for group in knob.groups for i in self._where.get(group.prime, ())})

    @cached_property
    def _where(self) -> Mapping[Prime, list[int]]:
        """For every axis the places of the terms in which it stands."""
        found: dict[Prime, list[int]] = {}
        for i, term in enumerate(self.terms):
            for p in {p for axis in term.dims for p in primes(axis)}:
                found.setdefault(p, []).append(i)
        return found

    def _left(self, touched: Iterable[int], widths: Mapping[str, float]) -> float:
        """How much terms are at these widths."""
        terms = [self.terms[i] for i in touched]
        found = {p: self.dependencies.by_prime.get(p) for term in terms for axis in term.dims for p in primes(axis)}
        by_prime = {p: widths[group.name] for p, group in found.items() if group and group.name in widths}
        return sum(term.at(by_prime) for term in terms)

    def widths(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Fractional widths at these shares, not below the smallest ones."""
        pairs = ((knob, group) for knob in self.knobs for group in knob.groups)
        return {g.name: max(knob.least, shares[g.name] * g.size) for knob, g in pairs}

    @cached_property
    def most(self) -> int:
        """The most that can go."""
        return int(self.removed({g.name: knob.least for knob in self.knobs for g in knob.groups}))

    def require(self) -> None:
        """Refuse a target that is out of reach.

        Raises:
            PlanError: if the target lies beyond what the groups can give.
        """
        if self.target > self.most:
            total = max(self.total, 1)
            raise PlanError(
                f"the target is to remove {self.target:,} {UNITS[self.unit]} ({self.target / total:.1%}), but the free "
                f"groups hold at most {self.most:,} ({self.most / total:.1%}) that can go; ask for less, protect less, "
                "lower the alignment, or choose a destination that allows more"
            )

    def solve(self, shares_at: Callable[[float], Mapping[str, float]]) -> Mapping[str, float]:
        """The shares at the pressure, from 0 to 1, at which the target is met; found by bisection.

        Raises:
            PlanError: if the target lies beyond what the groups can give.
        """
        self.require()
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            enough = self.removed(self.widths(shares_at(middle))) >= self.target
            low, high = (low, middle) if enough else (middle, high)
        return shares_at(high)

    @cached_property
    def total(self) -> int:
        """All that the model has."""
        return round(self._left(range(len(self.terms)), {}))
