"""Layer norms become RMS norms: a stream whose mean has been taken out where it is made needs no more than that.

``layer_norm(x) = rms_norm(x - mean(x)) * w + b``, and taking out the mean is a linear map, which goes into the weights
that make the stream; `b` goes into the biases of the maps behind the norm (SliceGPT, arXiv:2401.15024, section 3.2).
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


def is_centrable(group: Group) -> bool:
    """Might it be a stream under layer norms?"""
    return "layer_norm" in group.inexact_because and all(resolve(place.axis) is group.prime for place in group.places)


def centred(program: Program, groups: Collection[Group]) -> Edits:
    """The program with RMS norms in the place of layer norms over these groups."""
    edits = Edits(program, {group.prime for group in groups})
    for node in list(edits.graph.nodes):
        if node.target is aten.layer_norm.default and edits.last(node) in edits.axes:
            _replace(edits, node)
    for group in groups:
        for consumer in edits.dependencies.producers_of(group):
            if consumer.bias is not None and edits.readers[consumer.bias] == 1:
                edits.weights[consumer.bias] = _without_mean(edits.weight(consumer.bias), 0)
        for place in (place for place in group.places if "produced" in place.role):
            _centre(edits, place.parameter, place.dim, group.prime)
    return edits


def _without_mean(tensor: Tensor, dim: int) -> Tensor:
    return tensor - tensor.mean(dim, keepdim=True)


def _centre(edits: Edits, name: str, dim: int, axis: Prime) -> None:
    """Take the mean out of what a parameter makes; where others read it too, by a map behind."""
    if edits.readers[name] == 1:
        edits.weights[name] = _without_mean(edits.weight(name), dim)
        return
    made = [user for read in edits.reads(name) for user in read.users if edits.last(user) is axis]
    for i, node in enumerate(made):
        weight = edits.weight(name)
        eye = torch.eye(weight.shape[dim], dtype=weight.dtype)
        edits.insert(f"{name}_centre{i or ''}", _without_mean(eye, 0), node, list(node.users))


def _replace(edits: Edits, node: fx.Node) -> None:
    """An RMS norm, its weight and its bias in the place of a layer norm."""
    x, sizes, weight, bias = node.args[0], node.args[1], argument(node, 2, "weight"), argument(node, 3, "bias")

    def call(target: Any, *args: Any) -> fx.Node:
        with edits.graph.inserting_before(node):
            new = edits.graph.call_function(target, args)
        new.meta = dict(node.meta)
        return new

    made = call(aten.rms_norm.default, x, sizes, None, argument(node, 4, "eps", 1e-5))
    made = made if weight is None else call(aten.mul.Tensor, made, weight)
    if bias is not None and not _fold(edits, node, bias):
        made = call(aten.add.Tensor, made, bias)
    node.replace_all_uses_with(made)
    edits.graph.erase_node(node)


def _fold(edits: Edits, node: fx.Node, bias: Any) -> bool:
    """Let the maps behind a norm add what they make of its bias, if each has a bias of its own."""
    maps = edits.own_maps(node)
    if not maps or any(c.bias is None or edits.readers[c.bias] > 1 for c in maps):
        return False
    name = edits.program.name(str(bias.target))
    added = edits.weight(name)
    for consumer in maps:
        assert consumer.bias is not None
        made = consumer.matrix(edits.weight(consumer.weight)) @ added
        edits.weights[consumer.bias] = edits.weight(consumer.bias) + made
    edits.spent.add(name)
    return True
