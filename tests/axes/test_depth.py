"""Chains of axes as long as a model is deep: nothing recurses over a graph."""

from itertools import pairwise

from graphprune.axes import algebra
from graphprune.axes.algebra import Axis, Prime, Sum, direct_sum, prime, primes, resolve

DEEP = 20_000


def test_a_chain_of_bindings() -> None:
    chain = [prime(8) for _ in range(DEEP)]
    for before, after in pairwise(chain):
        algebra.unify(before, after)
    assert list(primes(chain[0])) == [resolve(chain[-1])]
    assert isinstance(chain[0], Prime) and chain[0].bound is chain[-1]  # the chain is shortened


def test_a_chain_of_products_and_sums() -> None:
    first: Axis = prime(2)
    axis = first
    for _ in range(DEEP):
        whole = prime(axis.size)
        outer, inner = algebra.factor(whole, 2) if axis.size > 2 else (whole, algebra.UNIT)
        algebra.unify(whole, axis)
        axis = algebra.product([resolve(outer), resolve(inner)])
    assert list(primes(axis)) == [resolve(first)]


def test_a_concatenation_of_many() -> None:
    parts = [prime(3) for _ in range(2_000)]
    whole = direct_sum(parts)
    other = prime(6_000)
    segments = algebra.split_axis(other, [3] * 2_000)
    algebra.unify(whole, other)
    assert [resolve(a) for a in segments] == [resolve(b) for b in parts]
    assert isinstance(resolve(other), Sum)
