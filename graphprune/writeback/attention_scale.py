"""Attention scale after a head-dim cut: multiply the q and k projections by ``(d_new / d_old)**0.25`` each.

A forward that computes ``q @ k.T / sqrt(q.shape[-1])``, or leaves that to fused attention, recomputes the scale from
the narrower head dimension ``d_new``. The two factors together restore the original scale ``1 / sqrt(d_old)``.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from graphprune.axes.algebra import Axis, Prime, Product, primes, resolve
from graphprune.axes.groups import Dependencies
from graphprune.axes.index_sets import locate, width
from graphprune.ir.program import Program
from graphprune.ir.weights import KeepByName

Factors = Mapping[str, Tensor]
Ratios = Mapping[Prime, float]


def options(
    original: Program, dependencies: Dependencies, widths: Mapping[str, int], keep: KeepByName
) -> Iterator[Factors]:
    """Candidate factors for the narrow parameters: none, all projections that produce scores, or those of one kind.

    Tables of positions that meet the projections take the factor, none if they multiply them as rotations do, or the
    inverse if they are contracted with them.
    """
    ratios = _ratios(dependencies, {dependencies.by_name[name].prime: size for name, size in widths.items()})
    yield {}
    kinds = {p: dependencies.by_prime[p].kind for p in ratios if p in dependencies.by_prime}
    chosen = [ratios] if ratios else []
    for kind in dict.fromkeys(kinds.values()) if len(set(kinds.values())) > 1 else ():
        chosen.append({p: ratio for p, ratio in ratios.items() if kinds.get(p) == kind})
    for selected in chosen:
        factors = _factors(original, dependencies, selected, keep)
        yield factors
        if tables := _tables(dependencies, factors):
            yield {name: factor for name, factor in factors.items() if name not in tables}
            yield {name: 1 / factor if name in tables else factor for name, factor in factors.items()}


def _tables(dependencies: Dependencies, names: Iterable[str]) -> set[str]:
    """Names of parameters with several dimensions that are not weights of linear layers."""
    weights = {consumer.weight for consumer in dependencies.consumers}
    return {name for name in names if len(dependencies.tensors[name]) > 1 and name not in weights}


def _ratios(dependencies: Dependencies, new: Mapping[Prime, int]) -> Ratios:
    """Ratios of new to old width of the axes over which two activations are contracted, by one prime of each index."""
    ratios: dict[Prime, float] = {}
    for axis in dependencies.products:
        if any(p in new for p in primes(axis)):
            ratios |= dict.fromkeys(_marks(resolve(axis), new), width(axis, new) / axis.size)
    return ratios


def _marks(axis: Axis, new: Mapping[Prime, int]) -> Iterator[Prime]:
    """Primes of which every index of an axis has exactly one: of a product those of one part, a narrower one if any."""
    if isinstance(axis, Prime):
        yield axis
        return
    parts = [part for part in axis.parts if any(primes(part))]
    if isinstance(axis, Product):
        parts = [part for part in parts if any(p in new for p in primes(part))][:1] or parts[:1]
    for part in parts:
        yield from _marks(part, new)


def _factors(original: Program, dependencies: Dependencies, ratios: Ratios, keep: KeepByName) -> Factors:
    """Factors by parameter: ratio**0.25 on rows that produce such an axis, the inverse on columns that consume it."""
    factors: dict[str, Tensor] = {}
    for name in original.parameters & dependencies.tensors.keys():
        dims = dependencies.tensors[name]
        for dim, axis in enumerate(dims):
            for p in dict.fromkeys(q for q in primes(axis) if q in ratios):
                present = torch.tensor([column >= 0 for _, column in locate(axis, p)])
                power = -0.25 if _consumes(dependencies, p, name, dim) else 0.25
                factor = torch.where(present, ratios[p] ** power, 1.0)
                factor = factor[keep.get(name, {}).get(dim, torch.arange(axis.size))]
                factors[name] = factors.get(name, torch.ones(())) * factor.view(-1, *[1] * (len(dims) - dim - 1))
    return factors


def _consumes(dependencies: Dependencies, p: Prime, name: str, dim: int) -> bool:
    """Whether this dimension of the parameter contracts the axis, as the output projection does when v shares it."""
    places = dependencies.by_prime[p].places if p in dependencies.by_prime else ()
    return any(place.parameter == name and place.dim == dim and "contracted" in place.role for place in places)
