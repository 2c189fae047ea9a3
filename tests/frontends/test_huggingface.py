"""Hugging Face folders as programs: the same numbers, weights on disk, and clear refusals."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from graphprune.errors import LoadError
from graphprune.frontends import huggingface
from graphprune.frontends.loading import load
from graphprune.huggingface import model_folder
from graphprune.ir.program import Program

Save = Callable[..., tuple[Path, Any]]
FAMILIES = (
    "LlamaForCausalLM", "OPTForCausalLM", "GPT2LMHeadModel", "BertForMaskedLM", "BertForSequenceClassification",
    "BertModel", "ViTForImageClassification", "ResNetForImageClassification", "MobileNetV2ForImageClassification",
)  # fmt: skip


def numbers(output: Any) -> torch.Tensor:
    found = output.logits if "logits" in output else output.last_hidden_state
    assert isinstance(found, torch.Tensor)
    return found


def assert_same(program: Program, model: Any, inputs: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        torch.testing.assert_close(numbers(program.module()(**inputs)), numbers(model(**inputs)), rtol=1e-5, atol=1e-6)


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if value is not None}))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_computes_what_transformers_computes(save: Save, name: str) -> None:
    folder, model = save(name)
    program = huggingface.load(folder)
    assert_same(program, model, dict(program.inputs[1]))
    assert program.count() == sum(parameter.numel() for parameter in model.parameters())
    assert program.source is not None
    assert (program.source.path, program.source.kind) == (folder, "huggingface")


def test_batch_and_sequence_stay_dynamic(save: Save) -> None:
    folder, model = save()
    ids = torch.randint(0, 99, (3, 13))
    assert_same(huggingface.load(folder), model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_weights_are_read_when_asked_for_and_in_float32(save: Save) -> None:
    folder, _ = save("BertModel", dtype=torch.bfloat16)
    program = huggingface.load(folder)
    assert program.source is not None
    assert program.source.dtype == torch.bfloat16
    name = "pooler.dense.weight"
    assert program.weights[name].dtype == torch.float32
    shutil.move(folder / model_folder.WEIGHTS, folder / "gone")
    with pytest.raises(
        LoadError, match=r"holds no pooler.dense.weight that can be read \(reason: no such file or directory"
    ):
        program.weights[name]


def test_shared_weights_answer_under_their_stored_name(save: Save) -> None:
    folder, _ = save()
    program = huggingface.load(folder)
    assert program.name("lm_head.weight") == "model.embed_tokens.weight"
    assert "lm_head.weight" not in program.weights
    stored = load_file(folder / model_folder.WEIGHTS)
    shared = stored.pop("model.embed_tokens.weight").clone()
    save_file({"lm_head.weight": shared, **stored}, folder / model_folder.WEIGHTS)
    torch.testing.assert_close(huggingface.load(folder).weights["model.embed_tokens.weight"], shared)


def test_shards(save: Save) -> None:
    folder, model = save("BertModel", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    program = huggingface.load(folder)
    assert_same(program, model, dict(program.inputs[1]))


def test_names_of_older_checkpoints(save: Save) -> None:
    folder, model = save("BertModel")
    old = {f"bert.{n}".replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in model.state_dict().items()}
    save_file(old, folder / model_folder.WEIGHTS)
    program = huggingface.load(folder)
    assert_same(program, model, dict(program.inputs[1]))


def test_what_transformers_computes_while_loading_is_converted(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    folder, model = save("MixtralForCausalLM")
    with caplog.at_level(logging.INFO, "graphprune"):
        program = huggingface.load(folder)
    assert_same(program, model, dict(program.inputs[1]))
    assert "converting the weights to the layout of transformers once" in caplog.text


def test_tables_that_follow_from_sizes_need_no_tensor(save: Save) -> None:
    folder, model = save("MarianMTModel")
    assert not any("embed_positions" in name for name in load_file(folder / model_folder.WEIGHTS))
    ids = torch.randint(3, 60, (2, 7))
    assert_same(
        load(folder), model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    )


def test_a_per_layer_folder_is_built_without_its_code(save: Save) -> None:
    folder, _ = save()
    state = load_file(folder / model_folder.WEIGHTS)
    for kind, dim in (("gate", 0), ("up", 0), ("down", 1)):
        name = f"model.layers.1.mlp.{kind}_proj.weight"
        state[name] = state[name].narrow(dim, 0, 16).contiguous()
    save_file(state, folder / model_folder.WEIGHTS, {"format": "pt"})
    edit(
        folder / model_folder.CONFIG, allow_global_per_layer_attribute_access=True,
        per_layer_config={"0": {"intermediate_size": 48}, "1": {"intermediate_size": 16}},
        auto_map={"AutoModelForCausalLM": "evil.Model"},
    )  # fmt: skip
    (folder / "evil.py").write_text("raise SystemExit('code of the folder ran')")
    program = huggingface.load(folder)
    assert program.shapes()["model.layers.1.mlp.up_proj.weight"] == (16, 32)
    assert_same(program, model_folder.module(folder), dict(program.inputs[1]))


def test_the_real_module(save: Save) -> None:
    folder, model = save()
    ids = torch.randint(0, 99, (1, 5))
    torch.testing.assert_close(model_folder.module(folder)(ids).logits, model(ids).logits)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(LoadError, match=match):
        huggingface.load(folder)


def test_missing_things_are_named(save: Save, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", r"nowhere is not a folder")
    folder, _ = save()
    (folder / model_folder.CONFIG).rename(folder / "other.json")
    refused(folder, r"has no config\.json: expected a Hugging Face model folder")
    (folder / "other.json").rename(folder / model_folder.CONFIG)
    (folder / model_folder.WEIGHTS).unlink()
    refused(folder, r"has no weights: expected model\.safetensors")


def test_pickles_are_never_read(save: Save) -> None:
    folder, _ = save()
    (folder / model_folder.WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model\.bin, which may run code when read; expected model\.safetensors.*save_pretrained")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", r"config\.json is not valid JSON .*copy the file again"),
        ("[]", r"config\.json holds a list, expected an object"),
        ('{"model_type": [1]}', r"model_type is \[1\], which transformers .* does not know"),
        ('{"model_type": "nonsense"}', r"model_type is 'nonsense', which transformers .* graphprune\.trace"),
    ],
)
def test_broken_configurations(save: Save, content: str, match: str) -> None:
    folder, _ = save()
    (folder / model_folder.CONFIG).write_text(content)
    refused(folder, match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["MyOwn"]}, r"architectures is \['MyOwn'\], expected the name of a model class"),
        ({"architectures": None}, r"architectures is \[\], expected the name of a model class"),
        ({"architectures": ["load_file"]}, r"expected the name of a model class"),
        ({"quantization_config": {"bits": 4}}, r"the weights are quantized \(quantization_config\)"),
        ({"text_config": {"compression_config": {"bits": 4}}}, r"quantized \(text_config\.compression_config\)"),
        ({"hidden_size": "many"}, r"config\.json: hidden_size is 'many', expected a whole number of at least 0"),
        ({"head_dim": "many"}, r"config\.json is not a valid configuration of a llama model"),
        ({"hidden_act": "nonsense"}, r"config\.json: no model can be built from it"),
        ({"intermediate_size": 64}, r"has shape \[48, 32\], expected \[64, 32\] by .*belongs to another model"),
        ({"num_hidden_layers": 3}, r"lacks 9 weights of LlamaForCausalLM, the first model\.layers\.2"),
    ],
)
def test_configurations_that_fit_no_model(save: Save, changes: dict[str, Any], match: str) -> None:
    folder, _ = save()
    edit(folder / model_folder.CONFIG, **changes)
    refused(folder, match)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
def test_quantized_numbers_without_scales_are_refused(save: Save, kind: torch.dtype) -> None:
    folder, _ = save()
    stored = load_file(folder / model_folder.WEIGHTS)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**stored, name: stored[name].to(kind)}, folder / model_folder.WEIGHTS)
    refused(
        folder, rf"stores 1 weights as \w+, the first {name}: quantized numbers, which mean nothing without .*scales"
    )


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, r"holds an adapter without its base model; merge both, .*merge_and_unload")


def test_broken_weights(save: Save) -> None:
    folder, _ = save()
    whole = (folder / model_folder.WEIGHTS).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"garbage" * 100):
        (folder / model_folder.WEIGHTS).write_bytes(content)
        refused(folder, rf"model\.safetensors \({len(content)} bytes\) is truncated or no safetensors file .*again")
    (folder / model_folder.WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(folder, r"a Git LFS pointer, not the file itself")


def test_broken_indices(save: Save) -> None:
    folder, _ = save(max_shard_size="20KB")
    first = next(folder.glob("*.safetensors"))
    first.rename(folder / "aside")
    refused(folder, rf"{first.name} is missing, one of \d+ files that model\.safetensors\.index\.json lists")
    edit(folder / model_folder.INDEX, weight_map={"a": "../outside.safetensors"})
    refused(folder, r"names '\.\./outside\.safetensors', expected a file in the same folder")
    edit(folder / model_folder.INDEX, weight_map={})
    refused(folder, r"has no weight_map")


@pytest.mark.parametrize("size", ["large", [], {"height": "x"}])
def test_a_broken_image_size(save: Save, size: Any) -> None:
    folder, _ = save("ResNetForImageClassification")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size or [None]}))
    refused(folder, r"the image size is .*, expected a number or height and width")


def test_the_image_size_of_a_preprocessor(save: Save) -> None:
    folder, _ = save("ResNetForImageClassification")
    (folder / "preprocessor_config.json").write_text('{"size": 64, "crop_size": {"height": 32, "width": 48}}')
    assert huggingface.load(folder).inputs[1]["pixel_values"].shape == (2, 3, 32, 48)


def test_a_tokenizer_must_be_there(save: Save) -> None:
    folder, _ = save()
    with pytest.raises(LoadError, match=r"has no tokenizer: expected one of tokenizer\.json"):
        model_folder.tokenizer(folder)


def test_unknown_models_say_what_can_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"(?s)there is no such file or folder; expected one of.*\.gguf.*\.pt2"):
        load("no/such/folder")
    with pytest.raises(LoadError, match=r"the folder is empty; expected one of"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(LoadError, match=r"the folder holds notes\.txt; expected one of"):
        load(tmp_path)
    with pytest.raises(LoadError, match=r"the file is of no known kind; expected one of"):
        load(tmp_path / "notes.txt")
