"""Encoder-decoders on a text: the encoder reads the first half of each window, the decoder predicts the second half."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import graphprune as gp
from graphprune.errors import CalibrationError
from graphprune.evaluation.perplexity import perplexity
from graphprune.planning.facts import Refits
from graphprune.statistics.collector import token_inputs
from tests.recipes import pipeline_of

LENGTH = 9


@pytest.fixture(scope="module")
def saved(configure: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder-decoder with the tokenizer of `folder`, whose decoder starts with token 0."""
    path = tmp_path_factory.mktemp("saved") / "t5"
    settings = configure("t5", num_layers=1, decoder_start_token_id=0)
    transformers.T5ForConditionalGeneration(settings).save_pretrained(path)
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


@pytest.fixture(scope="module")
def program(saved: Path) -> gp.Program:
    return gp.load(saved)


def test_a_window_is_divided_between_encoder_and_decoder(program: gp.Program) -> None:
    made = token_inputs(program, torch.arange(3, 3 + LENGTH)[None])
    assert made["input_ids"].tolist() == [[3, 4, 5, 6]]
    assert made["decoder_input_ids"].tolist() == [[0, 7, 8, 9, 10]]


def test_the_second_half_is_predicted(program: gp.Program) -> None:
    ids = torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    start = torch.zeros(2, 1, dtype=torch.long)
    decoder_ids = torch.cat([start, ids[:, 4:-1]], 1)
    out = program.module()(input_ids=ids[:, :4], attention_mask=torch.ones(2, 4).long(), decoder_input_ids=decoder_ids)
    right = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), ids[:, 4:].flatten())
    assert perplexity(program, ids).nll == pytest.approx(float(right), rel=1e-5)


def test_the_default_recipe_prunes_by_a_text(program: gp.Program, text: Path) -> None:
    small = pipeline_of("fasp", sparsity=0.1, calibration=text, samples=4, length=LENGTH)(program)
    assert small.count() == pytest.approx(0.9 * program.count(), rel=0.01)
    assert any(name.startswith("decoder.") for name in small.fact(Refits).by_weight)


def test_inputs_that_no_text_gives_are_named(program: gp.Program) -> None:
    other = program.with_facts(inputs=((), {**program.inputs[1], "pixel_values": torch.zeros(1)}))
    with pytest.raises(CalibrationError, match=r"the model takes pixel_values, too: pass batches .* such as magnitude"):
        token_inputs(other, torch.ones(1, LENGTH).long())
