"""Tests of plans for stock classes: which kinds may be cut, and folders that transformers loads by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import graphprune as gp
from graphprune.execution.output_comparison import compare
from graphprune.planning.facts import Eligible

TEXT: dict[str, Any] = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 1,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A folder of a small T5, and its model."""
    torch.manual_seed(0)
    model: Any = transformers.T5ForConditionalGeneration(transformers.T5Config(**TEXT, **T5))
    model.eval()
    folder = tmp_path_factory.mktemp("t5") / "model"
    model.save_pretrained(folder)
    return folder, model


def test_one_field_cuts_encoder_and_decoder_alike(t5: tuple[Path, nn.Module], tmp_path: Path) -> None:
    program = gp.load(t5[0])
    plan = gp.plan(program, ratio=0.5, recipe="magnitude", destination="stock")
    small = gp.apply(program, plan)
    assert gp.verify(program, small, plan).max_error < 1e-4
    gp.save(small, output=tmp_path / "out", destination="stock")
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert (model.config.d_ff, model.config.d_kv) == (20, 4) and model.config.num_heads in (2, 4)
    inputs = {name: value.flip(0) for name, value in program.inputs[1].items()}
    with torch.no_grad():
        expected, got = small.module()(**inputs), model(**inputs, use_cache=False)
    compare(expected.logits, got.logits, "reloaded model and graph")


def test_kinds_with_one_field_are_a_family(t5: tuple[Path, nn.Module]) -> None:
    eligible = gp.Analyze("stock")(gp.load(t5[0])).fact(Eligible)
    feedforward = "encoder.block.*.layer.*.DenseReluDense.wi.weight:0"
    (family,) = [family for family in eligible.families if feedforward in family]
    assert family == (feedforward, feedforward.replace("encoder", "decoder"))
    protected = gp.Analyze("stock", protect=("decoder.*DenseReluDense*",))(gp.load(t5[0])).fact(Eligible)
    assert "no field of T5Config" in protected.refused[feedforward]
