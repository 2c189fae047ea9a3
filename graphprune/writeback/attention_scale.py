"""Scores that a forward divides by the root of a size: what makes them takes the factor that a cut of it changes.

A forward that computes ``q @ k / sqrt(q.shape[-1])``, or leaves that to fused attention, divides by another number once
queries and keys are narrower. The rows that make queries and keys, both times the fourth root of the ratio of the
widths, give the same scores.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Dependencies
from graphprune.axes.index_sets import locate, width
from graphprune.ir.program import Program
from graphprune.ir.weights import KeepByName

Factors = Mapping[str, Tensor]
Ratios = Mapping[Prime, float]


def options(
    original: Program, dependencies: Dependencies, widths: Mapping[str, int], keep: KeepByName
) -> Iterator[Factors]:
    """By what narrow parameters may have to be multiplied: by nothing, all that make scores, or those of one kind."""
    ratios = _ratios(dependencies, {dependencies.by_name[name].prime: size for name, size in widths.items()})
    yield {}
    if ratios:
        yield _factors(original, dependencies, ratios, keep)
    kinds = {p: dependencies.by_prime[p].kind for p in ratios if p in dependencies.by_prime}
    for kind in dict.fromkeys(kinds.values()) if len(set(kinds.values())) > 1 else ():
        alike = {p: ratio for p, ratio in ratios.items() if kinds.get(p) == kind}
        yield _factors(original, dependencies, alike, keep)


def _ratios(dependencies: Dependencies, new: Mapping[Prime, int]) -> Ratios:
    """By how much the axes become narrower over which activations are multiplied and summed, by their primes."""
    found: dict[Prime, float] = {}
    for axis in dependencies.products:
        if any(p in new for p in primes(axis)):
            found |= dict.fromkeys(primes(axis), width(axis, new) / axis.size)
    return found


def _factors(original: Program, dependencies: Dependencies, ratios: Ratios, keep: KeepByName) -> Factors:
    """The fourth root of the ratio for what makes one of these axes, its inverse for what consumes it, else 1."""
    found: dict[str, Tensor] = {}
    for name in original.parameters & dependencies.tensors.keys():
        dims = dependencies.tensors[name]
        for dim, axis in enumerate(dims):
            for p in dict.fromkeys(q for q in primes(axis) if q in ratios):
                here = torch.tensor([column >= 0 for _, column in locate(axis, p)])
                power = -0.25 if _consumes(dependencies, p, name, dim) else 0.25
                factors = torch.where(here, ratios[p] ** power, 1.0)
                factors = factors[keep.get(name, {}).get(dim, torch.arange(axis.size))]
                found[name] = found.get(name, torch.ones(())) * factors.view(-1, *[1] * (len(dims) - dim - 1))
    return found


def _consumes(dependencies: Dependencies, p: Prime, name: str, dim: int) -> bool:
    """Does this dimension of the parameter contract the axis, as that of the values where they share it with keys?"""
    places = dependencies.by_prime[p].places if p in dependencies.by_prime else ()
    return any(place.parameter == name and place.dim == dim and "contracted" in place.role for place in places)
