"""ONNX files in fewer bits, of fixed sizes and of older opsets, each checked against its model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from graphprune.errors import ExportError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.checks import divergence
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport
from graphprune.exporters.export_folders.folder_check import verify_folder
from graphprune.exporters.onnx_tools.sessions import open_model
from graphprune.exporters.subjects.decoders import decoder_subject
from graphprune.exporters.subjects.subject import Subject
from graphprune.exporters.subjects.trial_inputs import generated_text, step_feeds

Save = Callable[..., Path]
Exported = Callable[..., ExportReport]
WINDOW = {"batch": 1, "sequence": 1, "past": 9}
ONE = {"num_hidden_layers": 1}


def export(source: Path, output: Path, target: str = "onnx", **options: Any) -> dict[str, Any]:
    return EXPORTERS[target].export(source, output, ExportOptions(**options)).facts


@pytest.mark.parametrize(
    ("quant", "worst", "static"),
    [("int8", 0.03, {}), ("int4", 0.3, WINDOW), pytest.param("int4", 0.3, {}, marks=pytest.mark.slow)],
)
def test_weights_in_fewer_bits(saved: Save, tmp_path: Path, quant: str, worst: float, static: dict[str, int]) -> None:
    """A tied head is the transposed embedding matrix, larger than the default limit of constant folding."""
    source = saved("llama", vocab_size=9000, hidden_size=64, intermediate_size=96, **ONE)
    facts = export(source, tmp_path / "x", quant=quant, static=static)
    errors = facts["parity"]["CPUExecutionProvider"]
    assert 1e-4 < errors["worst"] < worst and errors["divergence"] < divergence.BOUNDS[quant][0]
    assert facts["operators"].keys() == {"ai.onnx"} and facts["operators"]["ai.onnx"]["DequantizeLinear"] == 8
    assert facts["bytes"] < 2.5 * 9000 * 64  # two copies, one laid out for the product
    assert verify_folder(tmp_path / "x").max_error == pytest.approx(errors["worst"], rel=1e-3)


def test_int4_for_cuda_is_fused_and_multiplies_in_blocks(saved: Save, tmp_path: Path) -> None:
    facts = export(saved("llama", **ONE), tmp_path / "x", "onnx-gpu", quant="int4", static=WINDOW)
    bits = [
        next(a.i for a in node.attribute if a.name == "bits")
        for node in onnx.load(str(tmp_path / "x" / "model.onnx")).graph.node
        if node.op_type == "MatMulNBits"
    ]
    assert sorted(bits) == [4] * 7 + [8]  # the head keeps 8
    assert facts["notes"] == ["fused for the CUDA provider"]


def test_a_model_without_products_in_fewer_bits(saved: Save, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the model has no product with a weight matrix to store in int8"):
        export(saved("resnet"), tmp_path / "x", quant="int8", static={"batch": 1})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_decoder_of_fixed_sizes_writes_what_the_model_writes(saved: Save, exported: Exported, kind: str) -> None:
    """The oldest position of the window is dropped with every token; positions before the text are masked."""
    source = saved(kind, **ONE)
    folder = exported(source, static=WINDOW).output
    graph = onnx.load(str(folder / "model.onnx")).graph
    assert all(dim.dim_value for value in graph.input for dim in value.type.tensor_type.shape.dim)
    runner = open_model(folder / "model.onnx")
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    subject = decoder_subject(model)
    ids = generated_text(subject, 1, 9)
    reference = model(input_ids=ids).logits
    past = {
        name: torch.zeros([d if isinstance(d, int) else 1 for d in value.shape])
        for name, value in runner.inputs.items()
        if "past" in name
    }
    for done in range(9):
        mask = torch.tensor([[0] * (9 - done) + [1] * (done + 1)])
        padded = torch.cat([torch.zeros(1, 9 - done, dtype=torch.long), ids[:, : done + 1]], 1)
        outputs = runner.run({**step_feeds(subject, padded, mask, 9, 10), **past})
        torch.testing.assert_close(outputs["logits"][:, 0], reference[:, done], atol=1e-4, rtol=1e-4)
        past = {name: outputs[name.replace("past_key_values", "present")][:, :, 1:] for name in past}
    assert verify_folder(folder).max_error is not None


def test_fixed_sizes_of_other_models(saved: Save, tmp_path: Path) -> None:
    text = export(saved("bert", **ONE), tmp_path / "text", static={"batch": 1, "sequence": 16})
    cases = text["parity"]["CPUExecutionProvider"]["cases"]
    assert cases.keys() == {
        "fixed sizes, seed 0",
        "fixed sizes, seed 1",
        "fixed sizes, seed 2",
        "batch 1, one padded on the right",
    }
    image = export(saved("resnet"), tmp_path / "image", static={"batch": 1}, opset=20)
    assert image["opset"] == {"ai.onnx": 20}


def test_sizes_that_do_not_fit(saved: Save, tmp_path: Path) -> None:
    for static in ({"batch": 1}, {**WINDOW, "past": 0}, {"height": 3}):
        with pytest.raises(
            ExportError, match="do not fit this model: pass batch=N,sequence=N,past=N, each N a positive"
        ):
            export(saved("llama", **ONE), tmp_path / "x", static=static)


@pytest.mark.parametrize("static", [WINDOW, pytest.param({}, marks=pytest.mark.slow)])
def test_older_opsets(saved: Save, tmp_path: Path, static: dict[str, int]) -> None:
    facts = export(saved("llama", **ONE), tmp_path / "x", opset=20, static=static)
    assert facts["opset"] == {"ai.onnx": 20} and "IsNaN" not in facts["operators"]["ai.onnx"]


def test_an_opset_without_blocks(saved: Save, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="int8 needs operators of opset 21 or later; omit --opset"):
        export(saved("vit", **ONE), tmp_path / "x", opset=20, quant="int8", static={"batch": 1})


def test_standard_operators_for_tensorrt(saved: Save, tmp_path: Path) -> None:
    facts = export(saved("llama", **ONE), tmp_path / "x", "onnx-gpu", portable=True, static=WINDOW)
    assert facts["operators"].keys() == {"ai.onnx"} and facts["half_precision_itself"] > 0


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("pt2", {"quant": "int8"}, "target pt2 cannot be made with quant int8; it takes no options"),
        ("onnx", {"portable": True}, r"cannot be made with portable True; it takes dtype \(fp32, fp16\), quant"),
        ("onnx", {"dtype": "fp8"}, "cannot be made with dtype fp8"),
        ("onnx", {"opset": 7}, "cannot be made with opset 7"),
    ],
)
def test_options_that_a_target_does_not_take(tmp_path: Path, target: str, options: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        export(tmp_path / "nothing", tmp_path / "x.pt2", target, **options)


class Shifted:
    """A file whose logits are of another token."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def run(self, feeds: Any) -> dict[str, Tensor]:
        outputs = self.subject.run(feeds)
        return {**outputs, "logits": 40 * outputs["logits"].roll(1, -1)}


def test_weights_that_say_something_else_are_refused(model: Callable[..., nn.Module]) -> None:
    subject = decoder_subject(model("llama", **ONE))
    assert divergence.check(subject, subject, "int4").divergence == 0.0
    with pytest.raises(ExportError, match=r"int8 changes the predictions .* nats per token \(at most 0\.1\)"):
        divergence.check(subject, Shifted(subject), "int8")


def test_no_options_are_the_defaults() -> None:
    assert ExportOptions(None, "none", None, {}, False) == NO_OPTIONS
