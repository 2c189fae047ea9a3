"""Biases that a refit adds to a saved model: fields of its configuration give them, or the recipe is refused early."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import graphprune as gp
from graphprune.errors import ExportError, PlanError
from graphprune.huggingface.config_biases import parameters, with_parameters
from graphprune.statistics.collector import token_inputs


def pruned(folder: Path, output: Path, text: Path, destination: str) -> gp.Program:
    result = gp.prune(
        folder, output=output, recipe="flap", sparsity=0.2, calibration=text, samples=9, length=16, align=2,
        destination=destination,
    )  # fmt: skip
    assert result.program is not None
    assert result.report.parameters_after == result.program.count()
    return result.program


def added(program: gp.Program) -> set[str]:
    """Biases of a program, of which some are not zero."""
    biases = {name for name in program.parameters if name.endswith("bias")}
    assert any(float(program.weights[name].abs().max()) > 0 for name in biases)
    return biases


def refitted(*layers: int) -> set[str]:
    """Biases that the refit may add."""
    return {f"model.layers.{i}.{name}.bias" for i in layers for name in ("self_attn.o_proj", "mlp.down_proj")}


def test_a_decoder_without_biases_is_saved_with_them_as_a_graph(
    tiny: Any, folder: Path, text: Path, tmp_path: Path
) -> None:
    source = tmp_path / "shallow"
    tiny("llama", num_hidden_layers=1).save_pretrained(source)
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, source)
    assert added(pruned(source, tmp_path / "out", text, "free")) <= refitted(0)
    assert gp.verify_folder(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("destination", ["stock", "per-layer"])
def test_a_decoder_without_biases_is_saved_with_them(
    destination: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    program = pruned(folder, output, text, destination)
    assert refitted(0, 1) < added(program)
    assert gp.verify_folder(output)
    settings = json.loads((output / "config.json").read_text())
    assert settings["attention_bias"] and settings["mlp_bias"]
    reloaded, ids = gp.load(output), torch.arange(3, 19)[None]
    got, expected = (made.module()(**token_inputs(made, ids)).logits for made in (reloaded, program))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def unbiased(folder: Path, tmp_path: Path) -> Path:
    """A saved decoder whose configuration has no word for biases."""
    path = tmp_path / "mistral"
    config = transformers.MistralConfig(
        vocab_size=60, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformers.MistralForCausalLM(config).save_pretrained(path)
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


def test_what_cannot_be_saved_is_refused_before_anything_runs(unbiased: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(PlanError, match=r"refit bias adds a bias.*MistralForCausalLM has no parameter.*least-squares"):
        pruned(unbiased, output, text, "stock")
    assert not output.exists()


def test_fields_are_found_by_what_they_make(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    name = "model.layers.1.mlp.down_proj.bias"
    new = with_parameters(config, [name])
    assert name in parameters(new) and not new.attention_bias and new.mlp_bias and not config.mlp_bias
    with pytest.raises(ExportError, match=r"no parameter 'model\.norm\.bias', nor with attention_bias or mlp_bias set"):
        with_parameters(config, ["model.norm.bias"])
