"""Recurrent layers."""

from typing import Any

import torch
from torch import Tensor

from graphprune.frontends.onnx_import.onnx_values import NodeCall
from graphprune.frontends.onnx_import.operators import translates

_LSTM, _GRU = (0, 2, 3, 1), (1, 0, 2)  # places in ONNX of the gates of torch: i f g o and r z n


@translates("LSTM")
def lstm(call: NodeCall) -> Any:
    x, sides = _checked(call, 7)
    states = [_state(call, index, x, sides) for index in (5, 6)]
    weights = _weights(call, sides, _LSTM)
    y, hidden, cell = torch.lstm(x, states, weights, True, 1, 0.0, False, sides == 2, False)
    return _by_side(y, sides), hidden, cell


@translates("GRU")
def gru(call: NodeCall) -> Any:
    call.require(bool(call.attribute("linear_before_reset", 0)), "linear_before_reset 0")
    x, sides = _checked(call, 6)
    weights = _weights(call, sides, _GRU)
    y, hidden = torch.gru(x, _state(call, 5, x, sides), weights, True, 1, 0.0, False, sides == 2, False)
    return _by_side(y, sides), hidden


@translates("RNN")
def rnn(call: NodeCall) -> Any:
    x, sides = _checked(call, 6)
    function = torch.rnn_relu if call.attribute("activations", ["Tanh"])[0] == "Relu" else torch.rnn_tanh
    weights = _weights(call, sides, (0,))
    y, hidden = function(x, _state(call, 5, x, sides), weights, True, 1, 0.0, False, sides == 2, False)
    return _by_side(y, sides), hidden


def _checked(call: NodeCall, peepholes: int) -> tuple[Tensor, int]:
    """Input, and the number of directions."""
    direction = call.attribute("direction", "forward")
    call.require(direction != "reverse", "the direction reverse")
    call.require(not call.attribute("layout", 0), "layout 1")
    call.require(not call.attribute("clip", 0.0) and not call.has(peepholes), "clipping or peepholes")
    standard = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}.get(call.node.op_type)
    sides = 2 if direction == "bidirectional" else 1
    activations = call.attribute("activations")
    call.require(standard is None or activations in (None, standard * sides), f"the activations {activations}")
    return call.tensor(0), sides


def _state(call: NodeCall, index: int, x: Tensor, sides: int) -> Tensor:
    return call.tensor(index) if call.has(index) else x.new_zeros(sides, x.shape[1], call.attribute("hidden_size"))


def _weights(call: NodeCall, sides: int, order: tuple[int, ...]) -> list[Tensor]:
    """Weights and biases in the order of torch."""
    count, hidden = len(order), call.attribute("hidden_size")
    weights: list[Tensor] = []
    for side in range(sides):
        own = [call.tensor(1)[side], call.tensor(2)[side]]
        own += (
            list(torch.split(call.tensor(3)[side], count * hidden))
            if call.has(3)
            else [own[0].new_zeros(count * hidden)] * 2
        )
        weights += [torch.cat([part[i * hidden : (i + 1) * hidden] for i in order]) for part in own]
    return weights


def _by_side(y: Tensor, sides: int) -> Tensor:
    """``(sequence, batch, sides * size) -> (sequence, sides, batch, size)``"""
    length, batch, size = y.shape
    return y.reshape(length, batch, sides, size // sides).transpose(1, 2)
