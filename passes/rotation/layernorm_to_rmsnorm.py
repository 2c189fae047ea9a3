"""Layer norms become RMS norms, after the mean of the residual stream is subtracted where the stream is computed.

``layer_norm(x) = rms_norm(x - mean(x)) * w + b``. Subtracting the mean is linear, so that it is fused into the weights
that write the stream; `b` is fused into the biases of the layers after the norm (SliceGPT, arXiv:2401.15024, section
3.2).
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.axes.algebra import Prime, resolve
from graphprune.axes.groups import Group
from graphprune.axes.rule_helpers import argument
from graphprune.ir.program import Program
from graphprune.passes.rotation.graph_edits import Edits, aten


def is_centerable(group: Group) -> bool:
    """Whether the group may be a residual stream under layer norms."""
    return "layer_norm" in group.inexact_because and all(resolve(place.axis) is group.prime for place in group.places)


def center(program: Program, groups: Collection[Group]) -> Edits:
    """The edits that replace layer norms over these groups by RMS norms."""
    edits = Edits(program, {group.prime for group in groups})
    for node in list(edits.graph.nodes):
        if node.target is aten.layer_norm.default and edits.last_axis(node) in edits.axes:
            _replace(edits, node)
    for group in groups:
        for consumer in edits.dependencies.producers_of(group):
            if consumer.bias is not None and edits.readers[consumer.bias] == 1:
                edits.weights[consumer.bias] = _without_mean(edits.weight(consumer.bias), 0)
        for place in (place for place in group.places if "produced" in place.role):
            _center(edits, place.parameter, place.dim, group.prime)
    return edits


def _without_mean(tensor: Tensor, dim: int) -> Tensor:
    return tensor - tensor.mean(dim, keepdim=True)


def _center(edits: Edits, name: str, dim: int, axis: Prime) -> None:
    """Subtract the mean from the values that a parameter computes; by an added layer, if the parameter is shared."""
    if edits.readers[name] == 1:
        edits.weights[name] = _without_mean(edits.weight(name), dim)
        return
    values = [user for read in edits.reads(name) for user in read.users if edits.last_axis(user) is axis]
    for i, node in enumerate(values):
        weight = edits.weight(name)
        eye = torch.eye(weight.shape[dim], dtype=weight.dtype)
        edits.insert(f"{name}_centre{i or ''}", _without_mean(eye, 0), node, list(node.users))


def _replace(edits: Edits, node: fx.Node) -> None:
    """Replace a layer norm by an RMS norm, its weight and its bias."""
    x, sizes, weight, bias = node.args[0], node.args[1], argument(node, 2, "weight"), argument(node, 3, "bias")

    def call(target: Any, *args: Any) -> fx.Node:
        with edits.graph.inserting_before(node):
            new = edits.graph.call_function(target, args)
        new.meta = dict(node.meta)
        return new

    value = call(aten.rms_norm.default, x, sizes, None, argument(node, 4, "eps", 1e-5))
    value = value if weight is None else call(aten.mul.Tensor, value, weight)
    if bias is not None and not _fuse_bias(edits, node, bias):
        value = call(aten.add.Tensor, value, bias)
    node.replace_all_uses_with(value)
    edits.graph.erase_node(node)


def _fuse_bias(edits: Edits, node: fx.Node, bias: Any) -> bool:
    """Fuse the bias of a norm into those of the layers that follow, if each has a bias of its own; return whether."""
    consumers = edits.sole_consumers(node)
    if not consumers or any(c.bias is None or edits.readers[c.bias] > 1 for c in consumers):
        return False
    name = edits.program.name(str(bias.target))
    added = edits.weight(name)
    for consumer in consumers:
        assert consumer.bias is not None
        product = consumer.matrix(edits.weight(consumer.weight)) @ added
        edits.weights[consumer.bias] = edits.weight(consumer.bias) + product
    edits.fused.add(name)
    return True
