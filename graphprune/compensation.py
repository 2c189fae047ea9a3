"""Scores that a forward divides by the root of a size: what makes them takes the factor that a cut of it changes.

A forward that computes ``q @ k / sqrt(q.shape[-1])``, or leaves that to fused attention, divides by another number once
queries and keys are narrower. The rows that make queries and keys, both times the fourth root of the ratio of the
widths, give the same scores.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations

import torch
from torch import Tensor, fx

from graphprune.axes import Axis, Prime, primes
from graphprune.dependencies import Dependencies
from graphprune.kept import locate
from graphprune.kept import width as narrow_width
from graphprune.program import Program
from graphprune.weights import KeepByName

Factors = Mapping[str, Tensor]


def options(
    original: Program, dependencies: Dependencies, widths: Mapping[str, int], keep: KeepByName
) -> Iterator[Factors]:
    """What narrow parameters may have to be multiplied by: first as they are, then all that make scores, then by kind."""
    new = {dependencies.by_name[name].prime: width for name, width in widths.items()}
    ratios = _ratios(original, dependencies, new)
    yield {}
    if ratios:
        yield _factors(original, dependencies, ratios, keep)
    kinds = {p: dependencies.by_prime[p].kind for p in ratios if p in dependencies.by_prime}
    for kind in dict.fromkeys(kinds.values()) if len(set(kinds.values())) > 1 else ():
        alike = {p: ratio for p, ratio in ratios.items() if kinds.get(p) == kind}
        yield _factors(original, dependencies, alike, keep)


def _ratios(original: Program, dependencies: Dependencies, new: Mapping[Prime, int]) -> dict[Prime, float]:
    """By how much the axes become narrower over which activations are multiplied and summed, by their primes."""
    contracted = {
        p for group in dependencies.groups for place in group.places if "contracted" in place.role
        for p in primes(place.axis) if p is group.prime
    }  # fmt: skip
    found: dict[Prime, float] = {}
    for node in original.graph.nodes:
        for axis in _summed(node, dependencies):
            own = set(primes(axis))
            if own & new.keys() and not own & contracted:
                found |= dict.fromkeys(own, narrow_width(axis, new) / axis.size)
    return found


def _summed(node: fx.Node, dependencies: Dependencies) -> Iterator[Axis]:
    """The dimensions of one input of a node that another has, too, and its output has not."""
    left = {p for axis in _axes(node, dependencies) for p in primes(axis)}
    values = [n for n in node.all_input_nodes if n.op == "call_function"]
    for a, b in combinations(values, 2):
        other = {p for axis in _axes(b, dependencies) for p in primes(axis)}
        for axis in _axes(a, dependencies):
            own = set(primes(axis))
            if own and own <= other and not own & left:
                yield axis


def _axes(node: fx.Node, dependencies: Dependencies) -> Iterator[Axis]:
    for item in dependencies.values.get(node.name, ()):
        yield from item if isinstance(item, tuple) else (item,)


def _factors(original: Program, dependencies: Dependencies, ratios: Mapping[Prime, float], keep: KeepByName) -> Factors:
    """The fourth root of the ratio for every row of a parameter that makes one of these axes, else 1."""
    found: dict[str, Tensor] = {}
    for name in original.parameters & dependencies.tensors.keys():
        dims = dependencies.tensors[name]
        for dim, axis in enumerate(dims):
            for p in dict.fromkeys(q for q in primes(axis) if q in ratios):
                here = torch.tensor([column >= 0 for _, column in locate(axis, p)])
                factors = torch.where(here, ratios[p] ** 0.25, 1.0)
                factors = factors[keep.get(name, {}).get(dim, torch.arange(axis.size))]
                found[name] = found.get(name, torch.ones(())) * factors.view(-1, *[1] * (len(dims) - dim - 1))
    return found
