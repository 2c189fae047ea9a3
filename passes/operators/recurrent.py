"""Recurrent layers: the gates share one hidden axis, which every step contracts and produces.

A masked hidden unit has zero rows in all gates and zero columns wherever it is read, so that its state has no effect.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import fx, nn

from graphprune.axes.algebra import Axis, direct_sum, factor, resolve
from graphprune.axes.rule import Dims, Example, Flow, Rule, Zeros
from graphprune.passes.operators import RULES

aten = torch.ops.aten


class Cell(Rule):
    """One step: ``x (b i), state (b h) -> (b h)``, with weights ``((g h) i)`` and ``((g h) h)``."""

    zeros = Zeros.LOST

    def __init__(self, gates: int) -> None:
        self.gates = gates

    def axes(self, flow: Flow, node: fx.Node) -> Dims | list[Dims]:
        states: list[Any] = list(node.args[1]) if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
        *batch, inner = flow.dims(node.args[0])
        hidden = self.step(flow, node, inner, node.args[2:])
        for state in states:
            *other, last = flow.dims(state)
            for a, b in zip(batch, other, strict=True):
                flow.unify(a, b)
            flow.unify(hidden, last)
        return [(*batch, hidden)] * len(states) if len(states) > 1 else (*batch, hidden)

    def step(self, flow: Flow, node: fx.Node, inner: Axis, weights: Any) -> Axis:
        """The output axis of one step, for a layer's weights: of input, of state, their biases, and the projection."""
        input_weight, state_weight, *rest = weights
        projection = next((w for w in rest if len(flow.dims(w)) == 2), None)
        hidden = self.gated(flow, flow.dims(input_weight)[0])
        for vector in (state_weight, *(w for w in rest if len(flow.dims(w)) == 1)):
            flow.unify(hidden, self.gated(flow, flow.dims(vector)[0]))
        output = flow.dims(projection)[0] if projection is not None else hidden
        if projection is not None:  # a projection to as many units would be taken for none
            flow.require_width(hidden, output.size + 1)
        contractions = [(inner, input_weight, 1), (output, state_weight, 1)]
        contractions += [(hidden, projection, 1)] if projection is not None else []
        for axis, weight, dim in contractions:
            flow.unify(axis, flow.dims(weight)[dim])
            flow.contract(axis, weight)
            flow.produce(weight, 0)
        flow.share_selection([inner, output, hidden], [inner, output, hidden])
        return output

    def gated(self, flow: Flow, axis: Axis) -> Axis:
        """The hidden axis in the rows of all gates."""
        outer, hidden = factor(axis, self.gates)
        flow.pin(outer, "it counts the gates")
        return hidden

    def examples(self) -> Iterator[Example]:
        yield Example(_Steps(), (torch.randn(2, 6),))


class Recurrent(Cell):
    """All steps of all layers in one or both directions: ``x (.. i), states (layers b h) -> (.. (directions h))``."""

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        x, hx, params, _, layers, dropout, train, bidirectional, _ = cast(Any, node.args[:9])
        states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
        *outer, features = flow.dims(x)
        for axis in outer:  # steps are sequential, and biases are added to every sequence
            flow.pin(axis, "a recurrent layer runs along it")
        per_direction = len(params) // (layers * (2 if bidirectional else 1))
        weights = [params[i : i + per_direction] for i in range(0, len(params), per_direction)]
        hidden = flow.dims(states[0])[-1]
        while weights:
            layer, weights = weights[: 2 if bidirectional else 1], weights[2 if bidirectional else 1 :]
            outputs = [self.step(flow, node, features, direction) for direction in layer]
            for axis in outputs:
                flow.unify(hidden, axis)
                if train and dropout and layers > 1:
                    flow.pin(axis, "its values are dropped at random")
            features = direct_sum([resolve(axis) for axis in outputs])
        return self.outputs(flow, (*outer, features), states, params[::per_direction])

    def outputs(self, flow: Flow, out: Dims, states: list[Any], firsts: list[Any]) -> list[Dims]:
        """The sequence and the last states; cell states of an LSTM have the width of its gates, without projection."""
        dims = [flow.dims(state) for state in states]
        for weight in firsts if len(dims) > 1 else ():
            flow.unify(dims[1][-1], self.gated(flow, flow.dims(weight)[0]))
        for state_dims in dims:
            for axis in state_dims[:-1]:
                flow.pin(axis, "it counts layers and sequences")
        return [out, *dims]

    def examples(self) -> Iterator[Example]:
        x = torch.randn(2, 5, 6)
        yield Example(_Sequence(nn.LSTM(8, 10, num_layers=2, batch_first=True, bidirectional=True)), (x,))
        yield Example(_Sequence(nn.LSTM(8, 10, proj_size=4, batch_first=True, num_layers=2)), (x,))
        yield Example(_Sequence(nn.GRU(8, 10, bias=False)), (x,))
        yield Example(_Sequence(nn.RNN(8, 10, bidirectional=True)), (x,))


RULES.register(aten.lstm_cell.default)(Cell(4))
RULES.register(aten.gru_cell.default)(Cell(3))
RULES.register(aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)(Cell(1))
RULES.register(aten.lstm.input)(Recurrent(4))
RULES.register(aten.gru.input)(Recurrent(3))
RULES.register(aten.rnn_tanh.input, aten.rnn_relu.input)(Recurrent(1))


class _Steps(nn.Module):
    """An example: one step of each kind of cell."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.GRUCell(6, 8), nn.LSTMCell(8, 8), nn.RNNCell(8, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> Any:
        h, c = self.b(self.a(x))
        return self.d(self.c(h * torch.sigmoid(c)))


class _Sequence(nn.Module):
    """An example: a recurrent layer between two linear ones, all of whose outputs are used."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        out = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.a, self.layer, self.b = nn.Linear(6, layer.input_size), layer, nn.Linear(out, 3)
        self.c = nn.Linear(layer.proj_size or layer.hidden_size, 2)

    def forward(self, x: torch.Tensor) -> Any:
        y, states = self.layer(self.a(x))
        last = states[0] if isinstance(states, tuple) else states
        return self.b(y), self.c(last)
