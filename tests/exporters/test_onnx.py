"""Exported files give the numbers of the model, on other shapes than were traced, with and without a cache."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Wav2Vec2Config, Wav2Vec2ForCTC

import graphprune as gp
from graphprune.errors import ExportError, LoadError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.checks import parity
from graphprune.exporters.checks.generation import generate
from graphprune.exporters.checks.validation import half_precision_error
from graphprune.exporters.contract import ExportReport
from graphprune.exporters.export_folders.folder_check import verify_folder
from graphprune.exporters.subjects.decoders import decoder_subject
from graphprune.exporters.subjects.encoders import encoder_subject
from graphprune.exporters.subjects.subject import Subject
from graphprune.exporters.targets.onnx import export_program
from graphprune.frontends.modules import trace
from graphprune.huggingface import model_folder
from graphprune.ir.program import Program

Save = Callable[..., Path]
Model = Callable[..., nn.Module]
Exported = Callable[..., ExportReport]


@pytest.fixture(scope="module")
def llama(saved: Save, exported: Exported) -> Path:
    """A decoder, exported once."""
    return exported(saved("llama")).output


def report_of(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "export_report.json").read_text())
    return table


def test_a_decoder_has_the_names_that_other_tools_expect(llama: Path) -> None:
    graph = onnx.load(str(llama / "model.onnx")).graph
    cache = [f"{{}}.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    assert [i.name for i in graph.input] == [
        "input_ids", "attention_mask", "position_ids", *(name.format("past_key_values") for name in cache)
    ]  # fmt: skip
    assert [o.name for o in graph.output] == ["logits", *(name.format("present") for name in cache)]
    sizes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    assert sizes["input_ids"] == ["batch_size", "sequence_length"]
    assert sizes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert sizes["past_key_values.1.value"] == ["batch_size", 4, "past_sequence_length", 4]


def test_only_standard_operators_and_nothing_of_this_machine(llama: Path) -> None:
    model = onnx.load(str(llama / "model.onnx"))
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 23}
    assert not [node.name for node in model.graph.node if node.metadata_props]
    assert str(Path.cwd()).encode() not in (llama / "model.onnx").read_bytes()


def test_the_report_says_what_was_checked(llama: Path) -> None:
    report = report_of(llama)
    checked = report["parity"]["CPUExecutionProvider"]
    assert report["provider"] == "CPUExecutionProvider"
    assert checked["worst"] < 5e-5
    assert {"batch 2, 7 tokens, prompt to 7", "batch 2, 7 tokens, decode step 2"} <= checked["cases"].keys()
    assert any("padded on the left" in case for case in checked["cases"])
    assert checked["cases"]["batch 1, 5 tokens, decode step 1"]["logits"].keys() == {"absolute", "relative"}
    assert report["operators"]["ai.onnx"]["Attention"] == 2
    assert report["sizes"]["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert report["sizes"]["present.1.key"][1::2] == [4, 4] and report["parameters_before"] is None
    assert report["parameters"] == sum(p.numel() for p in model_folder.module(Path(report["source"])).parameters())
    assert report["bytes"] == (llama / "model.onnx").stat().st_size
    assert report["source_bytes"] == (Path(report["source"]) / "model.safetensors").stat().st_size
    assert {"torch", "onnx", "transformers"} <= report["versions"].keys()


def test_text_is_what_transformers_would_write(llama: Path) -> None:
    source = report_of(llama)["source"]
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    inputs = tokenizer("w3 w4 w5 w6", return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
    expected = str(tokenizer.decode(made, skip_special_tokens=True)).removeprefix("w3 w4 w5 w6")
    assert generate(llama, "w3 w4 w5 w6", 12) == expected


def test_a_prompt_without_tokens(llama: Path) -> None:
    with pytest.raises(ExportError, match="the prompt has no tokens"):
        generate(llama, "", 3)


def test_a_folder_without_a_model(tmp_path: Path, saved: Save) -> None:
    shutil.copytree(saved("llama"), tmp_path / "x")
    with pytest.raises(ExportError, match=r"has no model\.onnx; export a model there first"):
        generate(tmp_path / "x", "w3")


ONE_LAYER = {"opt": {"num_hidden_layers": 1}, "gpt2": {"n_layer": 1}, "bert": {"num_hidden_layers": 1}}
SLOWER = ("gpt2", "bert", "vit", "resnet", "mobilenet")


@pytest.mark.parametrize("kind", ["opt", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOWER)])
def test_other_kinds_agree(saved: Save, tmp_path: Path, kind: str) -> None:
    report = EXPORTERS["onnx"].export(saved(kind, **ONE_LAYER.get(kind, {})), tmp_path / "out")
    assert report.facts["parity"]["CPUExecutionProvider"]["worst"] < 1e-5
    assert report.files == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_layers_of_different_heads(uneven: Save, exported: Exported) -> None:
    graph = onnx.load(str(exported(uneven(), dtype="fp16").output / "model.onnx")).graph
    heads = [i.type.tensor_type.shape.dim[1].dim_value for i in graph.input if i.name.endswith(".key")]
    assert heads == [4, 2]


def test_half_precision_for_cuda(saved: Save, tmp_path: Path) -> None:
    pytest.importorskip("transformers.exporters.onnxruntime_fusions", reason="transformers is too old to fuse")
    report = EXPORTERS["onnx-gpu"].export(saved("llama", num_hidden_layers=1), tmp_path / "out")
    model = onnx.load(str(tmp_path / "out" / "model.onnx"))
    assert {t.data_type for t in model.graph.initializer if len(t.dims) == 2} == {TensorProto.FLOAT16}
    assert report.facts["notes"] == ["fused for the CUDA provider"]
    assert "com.microsoft" in report.facts["operators"]
    assert report.facts["parity"]["CPUExecutionProvider"]["worst"] < 2e-2
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert verify_folder(tmp_path / "out").max_error is not None


def test_a_model_that_half_precision_breaks(model: Model) -> None:
    big = model("vit")
    with torch.no_grad():
        big.get_parameter("classifier.weight").mul_(1e6)
    subject = encoder_subject(big, Path())
    reference = subject.run(subject.example())
    with pytest.raises(ExportError, match=r"half precision alone changes .* by (inf|nan).*Use target onnx"):
        half_precision_error(subject.to(torch.float16).run(subject.to(torch.float16).example()), reference)


def test_a_program_with_its_cache(model: Model, program_with_cache: Program, stored: ExportReport) -> None:
    original = model("llama", num_hidden_layers=1)
    assert program_with_cache.parameters == {name for name, _ in original.named_parameters()}
    assert stored.facts["parity"]["CPUExecutionProvider"]["worst"] < 1e-5
    assert stored.facts["operators"]["ai.onnx"]["Attention"] == 1
    result = verify_folder(stored.output)
    assert "decoding token by token agrees with reading the text at once" in result.checks


def test_a_program_of_any_module(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()).eval()
    report = export_program(trace(module, (torch.randn(2, 3, 8, 8),)), tmp_path / "out")
    assert report.facts["parity"]["CPUExecutionProvider"]["worst"] < 1e-5


def test_an_existing_output_is_refused_before_any_work(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="exists already; choose another output or pass --force"):
        EXPORTERS["onnx"].export(tmp_path / "nothing", llama)


def test_the_model_itself_is_never_replaced(saved: Save) -> None:
    folder = saved("vit")
    for target in ("onnx", "onnx-gpu"):
        with pytest.raises(ExportError, match="is or contains the source .*; choose another output"):
            EXPORTERS[target].export(folder, folder, force=True)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is not a folder"):
        EXPORTERS["onnx"].export(tmp_path / "nothing", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_with_its_decoder(saved: Save, tmp_path: Path) -> None:
    report = EXPORTERS["onnx"].export(saved("t5", num_layers=1), tmp_path / "out")
    assert report.facts["parity"]["CPUExecutionProvider"]["worst"] < 1e-5
    graph = onnx.load(str(tmp_path / "out" / "model.onnx")).graph
    assert [i.name for i in graph.input] == ["input_ids", "attention_mask", "decoder_input_ids"]
    assert [d.dim_param for d in graph.input[2].type.tensor_type.shape.dim] == ["batch_size", "decoder_sequence_length"]


def test_a_model_that_takes_sounds_cannot_be_exported(tmp_path: Path) -> None:
    config = Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path / "sounds")
    with pytest.raises(ExportError, match="Wav2Vec2ForCTC takes 'input_values'; models that take text"):
        EXPORTERS["onnx"].export(tmp_path / "sounds", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Wrong:
    """An exported file that changes an output."""

    def __init__(self, subject: Subject, change: Callable[[Tensor], Tensor], output: str = "logits") -> None:
        self.subject, self.change, self.output = subject, change, output

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.subject.run(feeds)
        return {**outputs, self.output: self.change(outputs[self.output])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x + 0.01 * x.abs().max(), r"prompt to 7: logits .* differs from the model by .* 5e-04"),
        (lambda x: x * torch.nan, "differs from the model by inf"),
        (lambda x: x[:, :1], r"logits of the exported file has shape \(2, 1, 60\), the model gives \(2, 7, 60\)"),
    ],
)
def test_what_differs_is_named(model: Model, change: Callable[[Tensor], Tensor], words: str) -> None:
    subject = decoder_subject(model("llama"))
    with pytest.raises(ExportError, match=words):
        parity.check(subject, Wrong(subject, change), 5e-4)


def test_a_wrong_cache_is_noticed(model: Model) -> None:
    subject = decoder_subject(model("llama"))
    with pytest.raises(ExportError, match=r"present\.1\.key of the exported file differs"):
        parity.check(subject, Wrong(subject, lambda x: x + 1, "present.1.key"), 5e-4)


@pytest.fixture
def sharp(model: Model) -> Subject:
    """A decoder whose attention in the last layer amplifies what its keys differ by."""
    amplifying = model("llama")
    with torch.no_grad():
        amplifying.get_parameter("model.layers.1.self_attn.q_proj.weight").mul_(3000)
    return decoder_subject(amplifying)


def _rounded(keys: Tensor) -> Tensor:
    signs = torch.randint(0, 2, keys.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return keys * (1 + 1e-4 * signs)


def test_a_cache_of_less_rounding_than_the_bound_may_be_amplified(sharp: Subject) -> None:
    rounded = Wrong(sharp, _rounded, "present.1.key")
    result = parity.check(sharp, rounded, 5e-4)
    assert any("decode step" in case for case in result.errors) and 1e-5 < result.worst <= 5e-4


def test_an_amplified_cache_hides_no_wrong_step(sharp: Subject) -> None:
    class WrongSteps(Wrong):
        def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
            outputs = super().run(feeds)
            step = feeds["past_key_values.1.key"].shape[2] > 0
            return {**outputs, "logits": outputs["logits"].roll(1, -1) if step else outputs["logits"]}

    with pytest.raises(ExportError, match=r"logits of the exported file differs"):
        parity.check(sharp, WrongSteps(sharp, _rounded, "present.1.key"), 5e-4)


def test_another_choice_is_noticed_even_within_the_bound(model: Model) -> None:
    subject = decoder_subject(model("llama"))

    def exchange(logits: Tensor) -> Tensor:
        """The best two trade places: far less than the largest value, but another token."""
        best = logits.topk(2, -1).indices
        return logits.scatter(-1, best, logits.gather(-1, best.flip(-1)))

    with pytest.raises(ExportError, match="has another most likely output than the model at|differs"):
        parity.check(subject, Wrong(subject, exchange), 0.02)


def test_a_model_of_nan_is_not_exported(model: Model) -> None:
    broken = model("llama")
    with torch.no_grad():
        broken.get_parameter("model.norm.weight").fill_(torch.nan)
    subject = decoder_subject(broken)
    with pytest.raises(ExportError, match="logits of the model itself is NaN or infinite; nothing was exported"):
        parity.check(subject, subject, 5e-4)


def test_verify_finds_damage(llama: Path, tmp_path: Path) -> None:
    assert verify_folder(llama).checks[-1].startswith("it agrees with the model in ")
    bad = tmp_path / "bad"
    shutil.copytree(llama, bad)
    onnx_model = onnx.load(str(bad / "model.onnx"))
    big = max(onnx_model.graph.initializer, key=lambda t: len(t.raw_data))
    big.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(big) * 2, big.name))
    onnx.save(onnx_model, str(bad / "model.onnx"))
    with pytest.raises(VerificationError, match="differs from the model by|its report says"):
        verify_folder(bad)
    (bad / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(VerificationError, match=r"model\.onnx is no(t a)? (valid )?ONNX"):
        verify_folder(bad)
    with pytest.raises(VerificationError, match=r"has no model\.onnx and no config\.json"):
        verify_folder(tmp_path)
    with pytest.raises(VerificationError, match="is not a folder; name one that graphprune wrote"):
        verify_folder(tmp_path / "nothing")


def test_verify_counts_parameters(saved: Save, tmp_path: Path) -> None:
    shutil.copytree(saved("llama"), tmp_path / "x")
    count = verify_folder(tmp_path / "x").parameters
    (tmp_path / "x" / "report.json").write_text(json.dumps({"parameters_after": count}))
    assert "it has as many parameters as its report says" in verify_folder(tmp_path / "x").checks
    (tmp_path / "x" / "report.json").write_text(json.dumps({"parameters_after": 5}))
    with pytest.raises(VerificationError, match=rf"has {count} parameters, expected 5 from its report\.json"):
        verify_folder(tmp_path / "x")


def test_an_exported_decoder_predicts_as_the_model_does(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{3 + i * i % 50}" for i in range(200)))
    source = report_of(llama)["source"]
    result, expected = (gp.evaluate(folder, text, length=16) for folder in (llama, source))
    assert result.windows == expected.windows > 5 and result.nll == pytest.approx(expected.nll, rel=1e-5)


def test_a_decoder_of_fixed_sizes_is_not_measured_on_windows(saved: Save, exported: Exported) -> None:
    static = {"batch": 1, "sequence": 1, "past": 9}
    folder = exported(saved("llama", num_hidden_layers=1), static=static).output
    with pytest.raises(ExportError, match="has a decoder with static sizes; export it without --static"):
        gp.evaluate(folder, "any")
