"""Configurations from a stranger: nothing is fetched, and sizes that no model has are refused before it is built."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp
from graphprune.errors import LoadError
from graphprune.huggingface.config_limits import require_harmless

PLAIN: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 131_072,
    "rope_theta": 5e8, "sliding_window": None, "bos_token_id": 128_000, "id2label": {"0": "a"}, "rms_norm_eps": 1e-6,
}  # fmt: skip

HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"attn_implementation": "evil/kernel"}, "attn_implementation is 'evil/kernel', which may be fetched"),
    ({"_attn_implementation_internal": "evil/kernel:f"}, "which may be fetched or imported"),
    ({"_attn_implementation": "flash_attention_2"}, "expected one of eager, sdpa"),
    ({"attn_implementation": {"text_config": "evil/kernel"}}, "which may be fetched"),
    ({"text_config": {"attn_implementation": "evil/kernel"}}, r"text_config\.attn_implementation is"),
    ({"experts_implementation": "evil/kernel"}, "experts_implementation is"),
    ({"use_pretrained_backbone": True}, "use_pretrained_backbone is 'True', for which weights or code are fetched"),
    ({"use_timm_backbone": True, "backbone": "resnet50"}, "use_timm_backbone is"),
    ({"backbone": "evil/backbone"}, "a backbone that is fetched by its name"),
    ({"num_hidden_layers": 10**12}, "num_hidden_layers is '1000000000000', expected at most 4,096"),
    ({"vocab_size": 2**60}, "vocab_size is .* expected at most"),
    ({"hidden_size": 10**9}, "hidden_size is .* expected at most"),
    ({"hidden_size": -16}, "hidden_size is '-16', expected a whole number of at least 0"),
    ({"hidden_size": "16"}, "hidden_size is '16', expected a whole number"),
    ({"hidden_size": 16.5}, "hidden_size is '16.5', expected a whole number"),
    ({"hidden_size": float("inf")}, "hidden_size is 'inf', expected a whole number"),
    ({"num_local_experts": 10**7}, "num_local_experts is .* expected at most 65,536"),
    ({"quantization_config": {"quant_method": "evil"}}, "the weights are quantized"),
]


def test_a_plain_configuration() -> None:
    require_harmless(PLAIN, Path("config.json"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("change", "match"), HOSTILE)
def test_a_hostile_configuration(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PLAIN | change))
    with pytest.raises(LoadError, match=match):
        gp.load(tmp_path)


@pytest.mark.usefixtures("no_network")
def test_code_in_a_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    maps = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil/repository--evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(PLAIN | maps | {"base_model_name_or_path": "evil/base"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "evil.Tokenizer", **maps}))
    with pytest.raises(LoadError, match="safetensors"):
        gp.load(tmp_path)
