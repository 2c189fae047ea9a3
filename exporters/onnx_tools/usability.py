"""Estimate of the part of an ONNX file that mobile accelerators support, from their lists of operators."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from graphprune.support.packages import load

_CHECKER = "onnxruntime.tools.mobile_helpers.usability_checker"
_COREML = {
    "CoreML MLProgram": "coreml_supported_mlprogram_ops.md",
    "CoreML NeuralNetwork": "coreml_supported_neuralnetwork_ops.md",
}
# Floating point only; listed at onnxruntime.ai/docs/execution-providers/Xnnpack-ExecutionProvider.html.
_XNNPACK = ("AveragePool", "Conv", "ConvTranspose", "Gemm", "MatMul", "MaxPool", "Resize", "Softmax")


def usability(path: Path) -> dict[str, dict[str, Any]]:
    """Supported nodes, total nodes, partitions, and unsupported operators, by accelerator.

    The estimate uses operators and static shapes only; ranks and attributes may exclude more. Nothing runs on a device.
    """
    checker = load(_CHECKER)
    model = checker.ModelProtoWithShapeInfo(path).model_with_shape_info
    results = {"NNAPI": checker.check_nnapi_partitions(model, True)}
    results |= {name: checker.check_coreml_partitions(model, True, ops) for name, ops in _COREML.items()}
    with _listed(_XNNPACK) as path:
        results["XNNPACK"] = checker.check_partitioning(model.graph, checker._SupportedOpsChecker(path), True)
    return {name: _summary(info) for name, info in results.items()}


def _summary(info: Any) -> dict[str, Any]:
    return {
        "nodes": info.num_supported_nodes,
        "of": info.num_nodes,
        "partitions": info.num_partitions,
        "suitable": info.suitability().name.lower(),
        "lacks": sorted(info.unsupported_ops),
    }


@contextmanager
def _listed(operators: tuple[str, ...]) -> Iterator[Path]:
    """A temporary file with a list of operators, from which the library reads them."""
    with NamedTemporaryFile("w", suffix=".md", delete=False) as file:
        file.write("|Operator|Note|\n|--------|------|\n")
        file.writelines(f"|ai.onnx:{name}||\n" for name in operators)
    try:
        yield Path(file.name)
    finally:
        Path(file.name).unlink()
