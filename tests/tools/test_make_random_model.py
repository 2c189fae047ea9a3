"""Random models are whole, always the same, and give finite numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.make_random_model import main

SIZES = ["--hidden", "32", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--intermediate", "48", "--vocab", "64"]


def test_a_small_one_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        main([*SIZES, "--tokenizer", str(folder), "--output", str(tmp_path / name), "--shard", "1e-5"])
    assert "100%" in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "model.safetensors.index.json" in files and "tokenizer.json" in files
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tmp_path / "a")("w3 w4 w5", return_tensors="pt").input_ids
    logits = model(ids).logits
    assert logits.isfinite().all() and 0.1 < logits.std() < 10
    assert json.loads((tmp_path / "a" / "config.json").read_text())["num_key_value_heads"] == 2


def test_a_tokenizer_with_too_many_words_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has 60 tokens, more than --vocab 50"):
        main([*SIZES[:-1], "50", "--tokenizer", str(folder), "--output", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
