"""Contributions of indices that a router chooses: the rows that each adds to the result, such as those of an expert."""

from dataclasses import dataclass

from graphprune.axes.algebra import Axis


@dataclass(frozen=True)
class Contribution:
    """Rows of the value `node`, partitioned by `offsets`: index i of `axis` adds those before ``offsets[i]``.

    They are multiplied by the weights of the router, if it has any.
    """

    node: str
    offsets: str
    axis: Axis
