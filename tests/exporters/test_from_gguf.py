"""A .gguf file as the source of an export."""

from pathlib import Path

import torch
import transformers

import graphprune as gp
from tests.exporters.test_gguf import Build, export
from tests.exporters.test_gguf import build as build


def test_a_gguf_file_is_exported_for_another_target(build: Build, tmp_path: Path) -> None:
    source = build("llama")
    export(source, tmp_path / "gguf")
    gp.export(tmp_path / "gguf" / "model.gguf", target="pt2", output=tmp_path / "model.pt2")
    written = torch.export.load(tmp_path / "model.pt2").state_dict
    expected = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        torch.testing.assert_close(written[name], expected[name], rtol=0, atol=0)
