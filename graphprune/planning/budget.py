"""Budgets: the amount to remove, and the amount removed at given widths."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd, lcm
from types import MappingProxyType

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Dependencies, Group, Term
from graphprune.errors import PlanError, choices
from graphprune.ir.program import Program

NONE: Mapping[str, int] = MappingProxyType({})
#: Units of budgets, with their names in messages.
UNITS = {
    "parameters": "parameters",
    "macs": "multiply-accumulates of an example input",
    "kv_cache": "bytes of key/value cache per token",
    "latency": "nanoseconds of a run",
}


def require_unit(name: str) -> None:
    """Refuse an unknown unit.

    Raises:
        PlanError: if there is no such unit.
    """
    if name not in UNITS:
        raise PlanError(f"no budget in {name!r}; {choices(name, UNITS)}")


@dataclass(frozen=True, eq=False)
class Knob:
    """A width to choose: groups that must have equal widths, and their legal widths in order, the full one last."""

    groups: tuple[Group, ...]
    legal: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Group], align: int = 1, allowed: Collection[int] | None = None) -> "Knob":
        """The knob of these groups, whose dimensions are multiples of `align`; `allowed` restricts the widths.

        Numbers of experts need not be multiples: no kernel has them as a width.
        """
        size, align = groups[0].size, 1 if all(group.routed for group in groups) else align
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
        """The greatest legal width of at most `width`; the smallest one if there is none."""
        return self.legal[max(bisect_right(self.legal, width + 1e-6) - 1, 0)]

    def step(self, width: int, way: int) -> int:
        """The next legal width above (`way` 1) or below (-1) a legal one; itself at the ends."""
        at = self.legal.index(width) + way
        return self.legal[min(max(at, 0), len(self.legal) - 1)]


@dataclass(frozen=True)
class Budget:
    """An amount to remove from the groups of `knobs`: `target` parameters, or another `unit` (see `UNITS`).

    Parameters that the graph does not read, such as those of parts that other calls use, are `constants`: they are part
    of the whole. Groups without a knob have their full width, or the `requested` one.
    """

    dependencies: Dependencies
    knobs: Sequence[Knob]
    target: int
    parameters: frozenset[str]
    unit: str = "parameters"
    constants: int = 0
    requested: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        program: Program,
        knobs: Sequence[Knob],
        target: int,
        unit: str = "parameters",
        requested: Mapping[str, int] = NONE,
    ) -> "Budget":
        """The budget of a program."""
        dependencies = program.fact(Dependencies)
        constants = program.constants if unit == "parameters" else 0
        own = program.parameters & dependencies.tensors.keys()
        return cls(dependencies, knobs, target, own, unit, constants, requested)

    @cached_property
    def terms(self) -> Sequence[Term]:
        """The terms whose sum the budget is about."""
        if self.unit == "parameters":
            return [Term(self.dependencies.tensors[name]) for name in sorted(self.parameters)]
        if self.unit not in self.dependencies.terms:
            raise PlanError("nothing is known of latencies; put measure-latency before allocate")
        return self.dependencies.terms[self.unit]

    def removed(self, widths: Mapping[str, float]) -> float:
        """The amount removed when the named groups have these widths, which may be fractional."""
        return self._whole - self._amount(self._touched, {**self.requested, **widths})

    @cached_property
    def _touched(self) -> Sequence[int]:
        """The positions of the terms that change with the widths."""
        groups = [group for knob in self.knobs for group in knob.groups]
        groups += [self.dependencies.by_name[name] for name in self.requested]
        return sorted({i for group in groups for i in self._term_indices.get(group.prime, ())})

    @cached_property
    def _whole(self) -> float:
        """The sum of these terms before any cut."""
        return self._amount(self._touched, {})

    def difference(self, knob: Knob, old: Mapping[str, float], new: Mapping[str, float]) -> float:
        """The amount removed at the widths `new` in addition to that at `old`, where both differ in `knob` alone."""
        touched = self._terms_of(knob)
        before, after = ({**self.requested, **widths} for widths in (old, new))
        return self._amount(touched, before) - self._amount(touched, after)

    def cost_per_index(self, knob: Knob) -> float:
        """The amount removed with one index of a knob, all others at their full or requested widths."""
        full, none = ({g.name: size for g in knob.groups} for size in (knob.size, 0))
        return self.difference(knob, full, none) / knob.size

    def _terms_of(self, knob: Knob) -> list[int]:
        """The positions of the terms in which a group of the knob stands."""
        return sorted({i for group in knob.groups for i in self._term_indices.get(group.prime, ())})

    @cached_property
    def _term_indices(self) -> Mapping[Prime, list[int]]:
        """For every axis the positions of the terms in which it stands."""
        indices: dict[Prime, list[int]] = {}
        for i, term in enumerate(self.terms):
            for p in {p for axis in term.dims for p in primes(axis)}:
                indices.setdefault(p, []).append(i)
        return indices

    def _amount(self, touched: Iterable[int], widths: Mapping[str, float]) -> float:
        """The sum of terms at these widths."""
        named = (pair for i in touched for pair in self._groups_of_terms[i]) if widths else ()
        by_prime = {p: widths[name] for p, name in named if name in widths}
        return sum(self.terms[i].at(by_prime) for i in touched)

    @cached_property
    def _groups_of_terms(self) -> Sequence[Sequence[tuple[Prime, str]]]:
        """The axes of every term that are axes of a group, with its name."""
        groups = self.dependencies.by_prime
        axes = [dict.fromkeys(p for axis in term.dims for p in primes(axis) if p in groups) for term in self.terms]
        return [[(p, groups[p].name) for p in inside] for inside in axes]

    def widths(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Fractional widths at these shares, no less than the smallest legal ones."""
        pairs = ((knob, group) for knob in self.knobs for group in knob.groups)
        return {g.name: max(knob.least, shares[g.name] * g.size) for knob, g in pairs}

    @cached_property
    def most(self) -> int:
        """The greatest amount that can be removed."""
        return int(self.removed({g.name: knob.least for knob in self.knobs for g in knob.groups}))

    def require(self) -> None:
        """Refuse an impossible target.

        Raises:
            PlanError: if the target is more than the groups can give.
        """
        if self.target > self.most:
            total = max(self.total, 1)
            rest = f"; {self.constants:,} of {total:,} parameters are not used by the captured call" * bool(
                self.constants
            )
            raise PlanError(
                f"the target is to remove {self.target:,} {UNITS[self.unit]} ({self.target / total:.1%}), but the free "
                f"groups hold at most {self.most:,} ({self.most / total:.1%}) that can be removed{rest}; ask for less, "
                "protect less, lower the alignment, or choose a destination that allows more"
            )

    def solve(self, shares_at: Callable[[float], Mapping[str, float]]) -> Mapping[str, float]:
        """The shares at the multiplier, from 0 to 1, that meets the target, by bisection.

        Raises:
            PlanError: if the target is more than the groups can give.
        """
        self.require()
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            enough = self.removed(self.widths(shares_at(middle))) >= self.target
            low, high = (low, middle) if enough else (middle, high)
        return shares_at(high)

    @cached_property
    def uniform(self) -> Mapping[str, float]:
        """The shares that meet the target where every group retains the same.

        Raises:
            PlanError: if the target is more than the groups can give.
        """
        names = [group.name for knob in self.knobs for group in knob.groups]
        return self.solve(lambda removed: dict.fromkeys(names, 1 - removed))

    @cached_property
    def total(self) -> int:
        """The amount of the whole model."""
        return round(self._amount(range(len(self.terms)), {})) + self.constants
