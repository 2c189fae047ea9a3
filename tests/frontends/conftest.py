"""Tiny random models of transformers, saved as anyone would save them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VISION = {key: size for key, size in TINY.items() if key != "vocab_size"}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": (
        "LlamaConfig",
        {**TINY, "num_hidden_layers": 2, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "OPTForCausalLM": (
        "OPTConfig",
        {**TINY, **TOKENS, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    ),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {**TOKENS, "n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 99, "n_positions": 64},
    ),
    "BertForMaskedLM": ("BertConfig", TINY),
    "BertForSequenceClassification": ("BertConfig", TINY),
    "BertModel": ("BertConfig", TINY),
    "ViTForImageClassification": ("ViTConfig", {**VISION, "image_size": 16, "patch_size": 4}),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.1, "image_size": 32}),
    "MarianMTModel": (
        "MarianConfig",
        {
            "vocab_size": 99,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
        },
    ),
    "MixtralForCausalLM": ("MixtralConfig", {**TINY, "num_key_value_heads": 2, "num_local_experts": 2}),
}

Saved = tuple[Path, Any]
Save = Callable[..., Saved]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Build a model with random weights and save it; returns the folder and the model."""

    def make(name: str = "LlamaForCausalLM", *, dtype: torch.dtype = torch.float32, **options: Any) -> Saved:
        torch.manual_seed(0)
        kind, sizes = CONFIGS[name]
        model = getattr(transformers, name)(getattr(transformers, kind)(**sizes)).to(dtype).eval()
        folder = tmp_path / name
        model.save_pretrained(folder, **options)
        return folder, model

    return make
