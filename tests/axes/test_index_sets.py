"""Places of primes in dimensions."""

from itertools import product

from graphprune.axes.algebra import Prime, Product, Sum
from graphprune.axes.index_sets import locate, segment


def test_a_segment_holds_all_of_a_prime() -> None:
    a, b, c = Prime(2), Prime(3), Prime(4)
    nested = Sum((a, Product((b, c)), c, a))
    twice = Sum((c, Product((b, a)), a))
    assert segment(nested, b) == (2, nested.parts[1]) and segment(nested, b, owner=a) == segment(nested, a)
    for axis in (nested, twice, Product((a, twice)), a):
        for inside, owner in product((a, b, c), (None, a, b)):
            whole = locate(axis, inside, owner)
            start, part = segment(axis, inside, owner)
            inner = locate(part, inside, owner)
            assert [column for _, column in whole[:start]] == [-1] * start
            assert whole[start : start + part.size] == inner
            assert all(column == -1 for _, column in whole[start + part.size :])
