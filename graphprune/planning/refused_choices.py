"""The masked original of a cut of experts: indices that a router may not choose have a score of minus infinity.

A zero in the router would be a score as good as any other. Minus infinity before every softmax and every choice along
the axis leaves the candidates of the cut model, whatever normalizes the scores, before or after the choice.
"""

from collections.abc import Collection, Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.axes.algebra import primes
from graphprune.axes.groups import Dependencies
from graphprune.axes.index_sets import RetainedByPrime, retained_indices
from graphprune.axes.rule_helpers import argument, canonical_dim
from graphprune.ir.program import Program, copy_graph
from graphprune.planning.plan import Rows, primes_to_keep

aten = torch.ops.aten
#: The position and default of the dimension along which operators choose or normalize.
_DIMENSIONS: Mapping[Any, tuple[int, int | None]] = {
    aten.softmax.int: (1, None),
    aten._softmax.default: (1, None),
    aten.log_softmax.int: (1, None),
    aten._log_softmax.default: (1, None),
    aten.topk.default: (2, -1),
    aten.max.dim: (1, None),
    aten.argmax.default: (1, None),
}


def refuse(scores: Tensor, dim: int, indices: Collection[int]) -> Tensor:
    """Scores of minus infinity at some indices of a dimension."""
    return scores.index_fill(dim, torch.tensor(list(indices), dtype=torch.long, device=scores.device), -inf)


def refusing(program: Program, groups: Mapping[str, Rows]) -> Program:
    """The program with scores of minus infinity for all indices of `groups` that are not in their rows."""
    dependencies = program.fact(Dependencies)
    keep = primes_to_keep(dependencies, groups)
    graph = copy_graph(program.graph)
    for node in list(graph.nodes):
        if node.target in _DIMENSIONS and (call := _refusal(node, dependencies, keep)):
            scores, dim, indices = call
            with graph.inserting_before(node):
                refused = graph.call_function(refuse, (scores, dim, indices))
            refused.meta = dict(scores.meta)
            node.args = (refused, *node.args[1:])
    return program.with_facts(dependencies, graph=graph)  # the axes of its values are known


def _refusal(node: fx.Node, dependencies: Dependencies, keep: RetainedByPrime) -> tuple[fx.Node, int, list[int]] | None:
    """The scores that a node reads, its dimension, and the indices of it that are refused; None without any."""
    scores, (position, default) = node.args[0], _DIMENSIONS[node.target]
    dim = argument(node, position, "dim", default)
    dims: Any = dependencies.values.get(scores.name, ()) if isinstance(scores, fx.Node) else ()
    if not isinstance(scores, fx.Node) or dim is None or argument(node, 3, "largest", True) is False:
        return None
    axis = dims[canonical_dim(dim, len(dims))]
    if not any(p in keep for p in primes(axis)):
        return None
    retained = set(retained_indices(axis, keep))
    return scores, canonical_dim(dim, len(dims)), [i for i in range(axis.size) if i not in retained]
