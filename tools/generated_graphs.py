"""Graphs of any depth and width, made directly: capturing models of thousands of layers takes minutes.

Every function returns a program of `n` parts with random weights, on which all passes work.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from graphprune.ir.program import Inputs, Program

aten = torch.ops.aten
BATCH, WIDTH, HIDDEN, INPUTS, OUTPUTS = 4, 8, 12, 6, 3


@dataclass
class _Builder:
    graph: fx.Graph = field(default_factory=fx.Graph)
    weights: dict[str, Tensor] = field(default_factory=dict)
    fake: FakeTensorMode = field(default_factory=FakeTensorMode)

    def input(self) -> fx.Node:
        return self._shaped(self.graph.placeholder("x"), (BATCH, INPUTS))

    def parameter(self, name: str, *shape: int) -> fx.Node:
        self.weights[name] = torch.randn(shape)
        return self._shaped(self.graph.create_node("get_attr", name), shape)

    def call(self, target: Any, arguments: tuple[Any, ...], *shape: int) -> fx.Node:
        return self._shaped(self.graph.call_function(target, arguments), shape)

    def linear(self, x: fx.Node, name: str, inputs: int, outputs: int) -> fx.Node:
        weight, bias = self.parameter(f"{name}.weight", outputs, inputs), self.parameter(f"{name}.bias", outputs)
        return self.call(aten.linear.default, (x, weight, bias), BATCH, outputs)

    def program(self, x: fx.Node, width: int = WIDTH) -> Program:
        self.graph.output((self.linear(x, "head", width, OUTPUTS),))
        inputs: Inputs = ((torch.randn(BATCH, INPUTS),), MappingProxyType({}))
        return Program(self.graph, self.weights, frozenset(self.weights), MappingProxyType({}), inputs)

    def _shaped(self, node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        with self.fake:
            node.meta["val"] = torch.empty(shape)
        return node


def layers(n: int) -> Program:
    """Linear layers with an activation function, one after the other."""
    make = _Builder()
    x = make.linear(make.input(), "stem", INPUTS, WIDTH)
    for i in range(n):
        x = make.call(aten.relu.default, (make.linear(x, f"layers.{i}", WIDTH, WIDTH),), BATCH, WIDTH)
    return make.program(x)


def blocks(n: int) -> Program:
    """Residual blocks of two linear layers."""
    make = _Builder()
    x = make.linear(make.input(), "stem", INPUTS, WIDTH)
    for i in range(n):
        hidden = make.linear(x, f"layers.{i}.up", WIDTH, HIDDEN)
        hidden = make.call(aten.relu.default, (hidden,), BATCH, HIDDEN)
        branch = make.linear(hidden, f"layers.{i}.down", HIDDEN, WIDTH)
        x = make.call(aten.add.Tensor, (x, branch), BATCH, WIDTH)
    return make.program(x)


def additions(n: int) -> Program:
    """Outputs of one layer, added to a residual stream."""
    make = _Builder()
    x = make.input()
    stream, layer = make.linear(x, "stem", INPUTS, WIDTH), make.parameter("layer.weight", WIDTH, INPUTS)
    for _ in range(n):
        branch = make.call(aten.linear.default, (x, layer), BATCH, WIDTH)
        stream = make.call(aten.add.Tensor, (stream, branch), BATCH, WIDTH)
    return make.program(stream)


def concatenation(n: int) -> Program:
    """One concatenation of the outputs of many layers."""
    make = _Builder()
    x = make.input()
    parts = [make.linear(x, f"layers.{i}", INPUTS, WIDTH) for i in range(n)]
    return make.program(make.call(aten.cat.default, (parts, 1), BATCH, n * WIDTH), n * WIDTH)


def views(n: int) -> Program:
    """A value that is viewed as a matrix and flattened again, many times."""
    make = _Builder()
    x = make.linear(make.input(), "stem", INPUTS, WIDTH)
    for _ in range(n):
        x = make.call(aten.view.default, (x, [BATCH, WIDTH // 2, 2]), BATCH, WIDTH // 2, 2)
        x = make.call(aten.view.default, (x, [BATCH, WIDTH]), BATCH, WIDTH)
    return make.program(x)


GRAPHS: dict[str, Callable[[int], Program]] = {
    "linear layers": layers, "residual blocks": blocks, "additions to a stream": additions,
    "concatenated values": concatenation, "views": views,
}  # fmt: skip
