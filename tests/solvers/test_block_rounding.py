"""Rounding to blocks of 4 bits: what exporters store, and what it costs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from graphprune.exporters.onnx_tools import onnx_quantize
from graphprune.solvers.block_rounding import FORMATS, compensated, inverse_root, output_change, to_nearest


def stored_in_onnx(weight: Tensor) -> Tensor:
    """The numbers that a file with the weight in int4 stands for."""
    integers, zero, scale = onnx_quantize._quantized(weight.T.numpy(), 4)
    wide = [np.repeat(part, 32, 0)[: len(integers)] for part in (zero, scale)]
    return torch.from_numpy((integers - wide[0]) * wide[1]).T


def stored_in_gguf(weight: Tensor) -> Tensor:
    """The numbers that a file with the weight in Q4_0 stands for."""
    kind = GGMLQuantizationType.Q4_0
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind))


STORED: dict[str, Callable[[Tensor], Tensor]] = {"int4": stored_in_onnx, "q4_0": stored_in_gguf}


def problem(columns: int = 96, rows: int = 24) -> tuple[Tensor, Tensor]:
    """A weight, of which some blocks are zero or of one sign, and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    weight[0], weight[1, :32], weight[2], weight[3] = 0, 0, weight[2].abs(), -weight[3].abs()
    x = torch.randn(400, 12, generator=generator) @ torch.randn(12, columns, generator=generator)
    x += 0.3 * torch.randn(400, columns, generator=generator)
    return weight, (x.T @ x).double()


@pytest.mark.parametrize("name", FORMATS)
def test_exporters_store_the_rounded_numbers(name: str) -> None:
    weight, gram = problem()
    for rounded in (compensated(weight, inverse_root(gram), FORMATS[name]), to_nearest(weight, FORMATS[name])):
        torch.testing.assert_close(STORED[name](rounded).float(), rounded, rtol=1e-5, atol=1e-6)
        assert (rounded - weight).abs().max() > 0.01


@pytest.mark.parametrize("name", FORMATS)
def test_nearest_is_what_exporters_do_alone(name: str) -> None:
    weight, _ = problem()
    torch.testing.assert_close(STORED[name](weight).float(), to_nearest(weight, FORMATS[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_outputs_change_less_than_by_rounding_to_nearest(name: str) -> None:
    weight, gram = problem()
    errors = [
        output_change(weight, way, gram)
        for way in (compensated(weight, inverse_root(gram), FORMATS[name]), to_nearest(weight, FORMATS[name]))
    ]
    assert 0 < errors[0] < 0.6 * errors[1]


def test_uncorrelated_inputs_leave_nothing_to_compensate() -> None:
    weight, _ = problem()
    own = compensated(weight, inverse_root(torch.eye(96, dtype=torch.float64)), FORMATS["int4"])
    torch.testing.assert_close(own, to_nearest(weight, FORMATS["int4"]))


def test_the_last_block_may_be_short() -> None:
    weight, gram = problem(columns=70)
    rounded = compensated(weight, inverse_root(gram), FORMATS["int4"])
    torch.testing.assert_close(stored_in_onnx(rounded).float(), rounded, rtol=1e-5, atol=1e-6)
