# ruff: noqa: E501 - the table of cases has a line for each
"""Every translation of an ONNX operator computes what ONNX Runtime does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from graphprune.execution.output_comparison import compare
from graphprune.frontends.onnx_import.onnx_module import TranslatedGraph
from graphprune.frontends.onnx_import.operators import TRANSLATIONS, key
from graphprune.frontends.onnx_import.operators.classical import CLASSICAL
from graphprune.frontends.onnx_import.reference_session import ReferenceSession
from graphprune.support.packages import onnx_ir as ir
from tests.frontends.onnx_graphs import MICROSOFT, TYPES, model, numbers

X = numbers(2, 4, 6)
IMAGE = numbers(2, 4, 8, 8, seed=1)
HALF = np.array([0.3], np.float32)
I64 = np.int64


def ints(*values: Any) -> np.ndarray:
    return np.array(values, dtype=I64)


OUTPUTS = {"Split": 2, "TopK": 2, "EmbedLayerNormalization": 2, "GroupQueryAttention": 3}
#: Operator, inputs, constants by the position of an input, attributes, and opset.
Case = tuple[str, list[np.ndarray | None], dict[int, np.ndarray], dict[str, Any], int]


def case(
    name: str, *inputs: Any, opset: int = 17, fixed: Mapping[int, np.ndarray] | None = None, **attributes: Any
) -> Case:
    return name, list(inputs), dict(fixed or {}), attributes, opset


UNARY = ["Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "IsNaN", "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tan", "Tanh", "Elu", "Celu", "Selu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu", "Shrink", "Flatten", "LogSoftmax", "Softmax", "Hardmax", "IsInf", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ArgMax", "ArgMin", "Transpose", "LpNormalization", "Dropout", "Size", "Cosh", "Sinh", "Asinh"]  # fmt: skip
POSITIVE = ["Log", "Sqrt", "Reciprocal", "ReduceLogSum"]
BINARY = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Sum",
    "Mean",
    "PRelu",
]
CASES: list[Case] = [
    *(case(name, X) for name in UNARY),
    *(case(name, np.abs(X) + 1) for name in POSITIVE),
    *(case(name, X, numbers(2, 4, 6, seed=5)) for name in BINARY),
    *(case(name, X, fixed={1: HALF}) for name in BINARY),
    *(case(name, X, opset=11, axis=1) for name in ("Softmax", "LogSoftmax")),
    case("Acos", np.tanh(X)), case("Asin", np.tanh(X)), case("Atanh", np.tanh(X)), case("Acosh", np.abs(X) + 1.5),
    case("Mish", X, opset=18), case("Gelu", X, opset=20), case("Gelu", X, opset=20, approximate="tanh"), case("Swish", X, opset=24, alpha=1.5),
    case("Pow", np.abs(X), fixed={1: np.array(1.5, np.float32)}), case("Mod", ints(7, -7, 5), ints(3, 3, -3)),
    case("Mod", X, numbers(2, 4, 6, seed=3), fmod=1), case("Div", ints(7, -7), ints(2, 2)),
    case("And", X > 0, X < 1), case("Or", X > 1, X < 0), case("Xor", X > 1, X < 0), case("Not", X > 0),
    case("BitShift", np.array([1, 4], np.uint8), np.array([1, 1], np.uint8), direction="LEFT"),
    case("BitwiseAnd", ints(6, 3), ints(3, 5), opset=18), case("BitwiseOr", ints(6, 3), ints(3, 5), opset=18),
    case("BitwiseXor", ints(6, 3), ints(3, 5), opset=18), case("BitwiseNot", ints(6, 3), opset=18),
    case("Clip", X, fixed={1: np.array(-0.5, np.float32), 2: np.array(0.5, np.float32)}), case("Clip", X, fixed={2: np.array(0.5, np.float32)}),
    case("Where", X > 0, X, numbers(2, 4, 6, seed=2)), case("Where", X > 0, X, fixed={2: np.array(-1e9, np.float32)}),
    case("Where", X > 0, fixed={1: np.array(1.0, np.float32), 2: np.array(0.0, np.float32)}),
    case("Cast", X, to=7), case("CastLike", X, ints(1)), case("Trilu", X), case("Trilu", X, fixed={1: np.array(1)}, upper=0),
    case("Reshape", X, fixed={1: ints(0, -1, 3)}), case("Expand", X[:, :1], fixed={1: ints(1, 5, 1)}),
    case("Tile", X, fixed={1: ints(1, 2, 1)}), case("Concat", X, X, axis=1), case("Shape", X, start=1),
    case("Unsqueeze", X, fixed={1: ints(0, -1)}), case("Unsqueeze", X, opset=11, axes=[1]),
    case("Squeeze", X[:, :1], fixed={1: ints(1)}), case("Squeeze", X[:, :1]), case("Squeeze", X[:, :1], opset=11, axes=[1]),
    case("Slice", X, fixed={1: ints(1), 2: ints(2**31), 3: ints(1), 4: ints(2)}),
    case("Slice", X, fixed={1: ints(-1), 2: ints(-(2**62)), 3: ints(2), 4: ints(-1)}),
    case("Slice", X, fixed={1: ints(-1), 2: ints(0), 3: ints(2), 4: ints(-2)}),
    case("Split", X, fixed={1: ints(1, 3)}, axis=1), case("Split", X, opset=11, axis=2, split=[2, 4]),
    case("Split", X, opset=18, axis=1, num_outputs=2),
    case("Pad", IMAGE, fixed={1: ints(0, 0, 1, 2, 0, 0, 3, 0)}), case("Pad", IMAGE, fixed={1: ints(0, 0, 1, 2, 0, 0, 3, 0)}, mode="reflect"),
    case("Pad", IMAGE, fixed={1: ints(0, 0, 1, 2, 0, 0, 3, 0)}, mode="edge"),
    case("Pad", X, opset=18, fixed={1: ints(1, 2), 2: np.array(0.5, np.float32), 3: ints(1)}),
    case("DepthToSpace", IMAGE, blocksize=2), case("DepthToSpace", IMAGE, blocksize=2, mode="CRD"),
    case("SpaceToDepth", IMAGE, blocksize=2), case("EyeLike", X[0]), case("OneHot", ints(1, 3), fixed={1: np.array(5), 2: np.array([0, 1], np.float32)}),
    case("ConstantOfShape", fixed={0: ints(2, 70)}), case("Range", fixed={0: np.array(0), 1: np.array(5), 2: np.array(2)}),
    case("Gather", X, fixed={1: np.array(-1)}, axis=2), case("Gather", X, fixed={1: ints(0, -1)}, axis=1),
    case("Gather", X, ints(0, 2), axis=1), case("Gather", X, np.array([[0, 2]]), axis=1), case("Gather", np.array([[0, 2]]), fixed={0: X[0]}),
    case("GatherElements", X, np.zeros((2, 4, 1), I64), axis=2), case("GatherND", X, ints([0, 1], [1, 2])),
    case("ScatterND", X, ints([0, 1], [1, 2]), numbers(2, 6, seed=4)), case("ScatterElements", X, np.ones((2, 1, 6), I64), numbers(2, 1, 6), axis=1),
    case("ScatterElements", X, np.ones((2, 1, 6), I64), numbers(2, 1, 6), axis=1, reduction="add"),
    case("NonZero", np.array([[1.0, 0.0], [2.0, 3.0]], np.float32)),
    case("CumSum", X, fixed={1: np.array(1)}), case("CumSum", X, fixed={1: np.array(1)}, reverse=1, exclusive=1),
    case("TopK", X, fixed={1: ints(3)}), case("ReduceSum", X, fixed={1: ints(-1)}, keepdims=0), case("ReduceSum", X, noop_with_empty_axes=1),
    case("ReduceMean", X, axes=[1]), case("ReduceMax", X, opset=18, fixed={1: ints(0, 2)}),
    case("Einsum", X, numbers(2, 6, 3), equation="bij,bjk->bik"),
    case("MatMul", X, fixed={1: numbers(6, 5)}), case("Gemm", X[0], fixed={1: numbers(6, 5), 2: numbers(5)}),
    case("Gemm", X[0], fixed={1: numbers(5, 6), 2: numbers(1, 5)}, transB=1), case("Gemm", X[0], X[1], alpha=0.5, transA=1),
    case("Gemm", X[0], fixed={1: numbers(5, 6), 2: numbers(5)}, transB=1, alpha=0.5, beta=2.0),
    case("Conv", IMAGE, fixed={1: numbers(6, 4, 3, 3), 2: numbers(6)}, pads=[1, 0, 2, 1], strides=[2, 1]),
    case("Conv", IMAGE, fixed={1: numbers(6, 4, 3, 3)}, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", IMAGE, fixed={1: numbers(6, 4, 3, 3)}, auto_pad="SAME_LOWER", strides=[2, 2]),
    case("Conv", IMAGE, fixed={1: numbers(8, 2, 3, 3)}, group=2, auto_pad="VALID"), case("Conv", X, fixed={1: numbers(3, 4, 2)}),
    case("ConvTranspose", IMAGE, fixed={1: numbers(4, 3, 3, 3), 2: numbers(3)}, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    case("ConvTranspose", IMAGE, fixed={1: numbers(4, 3, 3, 3)}, pads=[0, 0, 1, 1]),
    case("ConvTranspose", IMAGE, fixed={1: numbers(4, 3, 3, 3)}, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("ConvTranspose", IMAGE, fixed={1: numbers(4, 3, 3, 3)}, auto_pad="SAME_LOWER", strides=[2, 2]),
    case("ConvTranspose", IMAGE, fixed={1: numbers(4, 3, 3, 3)}, output_shape=[15, 16], strides=[2, 2]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), case("AveragePool", IMAGE, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    case("GlobalAveragePool", IMAGE), case("GlobalMaxPool", IMAGE),
    case("Resize", IMAGE, None, fixed={2: np.array([1, 1, 2, 2], np.float32)}, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    case("Resize", IMAGE, None, fixed={2: np.array([1, 1, 2, 2], np.float32)}, mode="linear"),
    case("Resize", IMAGE, None, fixed={2: np.array([1, 1, 2, 2], np.float32)}, mode="cubic", coordinate_transformation_mode="align_corners"),
    case("Resize", IMAGE, None, None, fixed={3: ints(2, 4, 12, 12)}, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    case("Upsample", IMAGE, opset=9, fixed={1: np.array([1, 1, 2, 2], np.float32)}, mode="nearest"),
    case("GridSample", IMAGE, np.tanh(numbers(2, 5, 5, 2)), opset=20, mode="linear", align_corners=1),
    case("BatchNormalization", IMAGE, fixed={i: np.abs(numbers(4, seed=i)) for i in range(1, 5)}),
    case("InstanceNormalization", IMAGE, fixed={1: numbers(4), 2: numbers(4, seed=1)}),
    case("LayerNormalization", X, fixed={1: numbers(6), 2: numbers(6, seed=1)}, epsilon=1e-3), case("LayerNormalization", X, fixed={1: numbers(4, 6)}, axis=1),
    case("GroupNormalization", IMAGE, opset=21, fixed={1: numbers(4), 2: numbers(4, seed=1)}, num_groups=2),
    case("GroupNormalization", IMAGE, opset=18, fixed={1: numbers(2), 2: numbers(2, seed=1)}, num_groups=2),
    case("RMSNormalization", X, opset=23, fixed={1: numbers(6)}), case("LRN", IMAGE, size=3), case("MeanVarianceNormalization", IMAGE),
    case("LSTM", X, fixed={1: numbers(1, 20, 6), 2: numbers(1, 20, 5), 3: numbers(1, 40)}, hidden_size=5),
    case("LSTM", X, fixed={1: numbers(2, 20, 6), 2: numbers(2, 20, 5)}, hidden_size=5, direction="bidirectional"),
    case("GRU", X, fixed={1: numbers(1, 15, 6), 2: numbers(1, 15, 5), 3: numbers(1, 30)}, hidden_size=5, linear_before_reset=1),
    case("RNN", X, fixed={1: numbers(1, 5, 6), 2: numbers(1, 5, 5), 3: numbers(1, 10)}, hidden_size=5),
    case("Attention", X[..., :4], numbers(2, 5, 2), numbers(2, 5, 2, seed=3), opset=23, q_num_heads=2, kv_num_heads=1),
    case("Attention", numbers(2, 2, 4, 4), numbers(2, 2, 4, 4, seed=2), numbers(2, 2, 4, 4, seed=3), opset=23, is_causal=1),
    case("RotaryEmbedding", numbers(2, 2, 5, 4), numbers(2, 5, 2), numbers(2, 5, 2, seed=2), opset=23),
    case("RotaryEmbedding", numbers(2, 2, 5, 4), numbers(2, 5, 2), numbers(2, 5, 2, seed=2), opset=23, interleaved=1),
]  # fmt: skip
HIDDEN = numbers(2, 5, 8, seed=1)
SQUARE = numbers(8, 24, seed=2)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
FUSED: list[Case] = [
    case("SkipLayerNormalization", HIDDEN, numbers(2, 5, 8), fixed={2: numbers(8), 3: numbers(8, seed=1), 4: numbers(8, seed=2)}),
    case("SkipSimplifiedLayerNormalization", HIDDEN, numbers(2, 5, 8), fixed={2: numbers(8)}),
    case("BiasGelu", HIDDEN, fixed={1: numbers(8)}), case("FastGelu", HIDDEN, fixed={1: numbers(8)}), case("Gelu", HIDDEN), case("QuickGelu", HIDDEN),
    case("FusedMatMul", HIDDEN, numbers(2, 5, 8), transB=1, alpha=0.5), case("FusedGemm", X[0], fixed={1: numbers(6, 5), 2: numbers(5)}, activation="Relu"),
    case("FusedConv", IMAGE, fixed={1: numbers(6, 4, 3, 3), 2: numbers(6)}, activation="Relu"),
    case("Attention", HIDDEN, None, fixed={1: SQUARE, 2: numbers(24)}, num_heads=2), case("Attention", HIDDEN, fixed={1: SQUARE, 2: numbers(24), 3: MASK}, num_heads=2),
    case("Attention", HIDDEN, fixed={1: SQUARE, 2: numbers(24)}, num_heads=2, unidirectional=1),
    case("MultiHeadAttention", HIDDEN, numbers(2, 5, 8), numbers(2, 5, 8, seed=4), num_heads=2),
    case("MultiHeadAttention", HIDDEN, numbers(2, 5, 8), numbers(2, 5, 8, seed=4), fixed={3: numbers(24), 4: MASK}, num_heads=2),
    case("GroupQueryAttention", numbers(1, 5, 16), numbers(1, 5, 8), numbers(1, 5, 8, seed=4), numbers(1, 1, 3, 8), numbers(1, 1, 3, 8, seed=2),
         fixed={5: np.array([[7]], np.int32), 6: np.array(8, np.int32)}, num_heads=2, kv_num_heads=1),
    case("RotaryEmbedding", numbers(2, 5, 8), np.arange(10, dtype=I64).reshape(2, 5) % 7, numbers(9, 2), numbers(9, 2, seed=2), num_heads=2),
    case("EmbedLayerNormalization", MASK, np.zeros((2, 5), np.int32), numbers(9, 8), numbers(6, 8), numbers(2, 8),
         fixed={5: numbers(8), 6: numbers(8, seed=1)}),
]  # fmt: skip


CLASSIC: list[Case] = [
    case("ArrayFeatureExtractor", X, fixed={1: ints(2, 0, 2)}), case("ArrayFeatureExtractor", X[0, 0], fixed={1: ints(4, 1)}),
    case("ArrayFeatureExtractor", ints(7, 8, 9)[None], ints(2, 0)),
    case("Scaler", X[0], offset=[0.5, -1.0, 0.0, 2.0, 0.1, 0.2], scale=[2.0, 1.0, 0.5, 3.0, 1.0, 1.0]), case("Scaler", ints(1, 2)[None], offset=[1.0], scale=[0.5]),
    *(case("Normalizer", X[0], norm=kind) for kind in ("MAX", "L1", "L2")), case("Normalizer", 0 * X[0], norm="L2"),
]  # fmt: skip


def build(tested: Case, domain: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node, and what it is given."""
    name, inputs, constants, attributes, opset = tested
    count = max([len(inputs) + len(constants), *(i + 1 for i in constants)])
    rest, feeds, names = iter(inputs), dict[str, np.ndarray](), []
    for position in range(count):
        if position in constants:
            names.append(f"c{position}")
        elif (array := next(rest, None)) is None:
            names.append("")
        else:
            names.append(f"x{position}")
            feeds[f"x{position}"] = array
    outputs = [f"y{i}" for i in range(OUTPUTS.get(name, 1))]
    node = helper.make_node(name, names, outputs, domain=domain, **attributes)
    kinds = {n: TYPES.get(a.dtype, helper.np_dtype_to_tensor_dtype(a.dtype)) for n, a in feeds.items()}
    made = model(
        [node],
        {n: a.shape for n, a in feeds.items()},
        outputs,
        {f"c{i}": a for i, a in constants.items()},
        opset,
        kinds,
    )
    return made, feeds


def agree(tested: Case, domain: str, tmp_path: Path) -> None:
    made, feeds = build(tested, domain)
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    expected = ReferenceSession(tmp_path / "m.onnx", made.SerializeToString()).run(tensors)
    with torch.no_grad():
        outputs = TranslatedGraph(ir.from_proto(made), "m.onnx")(**tensors)
    compare(expected, outputs, tested[0], 1e-3)
    assert [value.dtype for value in outputs.values()] == [value.dtype for value in expected.values()]


@pytest.mark.parametrize("tested", CASES, ids=lambda tested: f"{tested[0]}")
def test_standard_operator(tested: Case, tmp_path: Path) -> None:
    """A node of the standard computes the same numbers, of the same type."""
    agree(tested, "", tmp_path)


@pytest.mark.parametrize("tested", FUSED, ids=lambda tested: f"{tested[0]}")
def test_fused_operator(tested: Case, tmp_path: Path) -> None:
    """A fused node of ONNX Runtime is decomposed to the same numbers."""
    agree(tested, MICROSOFT, tmp_path)


@pytest.mark.parametrize("tested", CLASSIC, ids=lambda tested: f"{tested[0]}")
def test_operator_around_a_network_of_features(tested: Case, tmp_path: Path) -> None:
    """What converters of scikit-learn put before and behind a network computes the same numbers."""
    agree(tested, CLASSICAL, tmp_path)


def test_every_translation_is_tested() -> None:
    """No operator has a translation without a test, but for those with tests of their own."""
    tested = {each[0] for each in CASES} | {key(MICROSOFT, each[0]) for each in FUSED}
    tested |= {key(CLASSICAL, each[0]) for each in CLASSIC}
    aliases = {
        "SimplifiedLayerNormalization", "com.microsoft::SimplifiedLayerNormalization", "Scatter", "ReverseSequence",
        "com.microsoft::TransposeMatMul",
    }  # fmt: skip
    quantized = {
        name for name in TRANSLATIONS if "Quant" in name or "quantize" in name or "NBits" in name or "Integer" in name
    }
    assert set(TRANSLATIONS) - tested - aliases - quantized == set()


@pytest.mark.parametrize("with_zeros", [False, True])
def test_packed_matrix_is_unpacked(with_zeros: bool, tmp_path: Path) -> None:
    """A product with a matrix of 4 bits in blocks computes the same numbers as a plain one."""
    random = np.random.default_rng(0)
    constants = {
        "packed": random.integers(0, 256, (6, 2, 16), dtype=np.uint8),
        "scales": np.abs(numbers(6, 2)),
        **({"zeros": random.integers(0, 256, (6, 1), dtype=np.uint8)} if with_zeros else {}),
    }
    names = ["x", *constants]
    node = helper.make_node("MatMulNBits", names, ["y"], domain=MICROSOFT, K=64, N=6, bits=4, block_size=32)
    made = model([node], {"x": [3, 64]}, ["y"], constants)
    feeds = {"x": torch.from_numpy(numbers(3, 64, seed=1))}
    expected = ReferenceSession(tmp_path / "m.onnx", made.SerializeToString()).run(feeds)
    module = TranslatedGraph(ir.from_proto(made), "m.onnx", dequantize=True)
    compare(expected, module(**feeds), "MatMulNBits", 1e-3)
    assert next(module.parameters()).shape == (64, 6)
