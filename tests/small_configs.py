"""Configurations of small models of several kinds, for tests that build or save one."""

from typing import Any

import transformers
from transformers import PreTrainedConfig

VOCABULARY = 60
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")  # fields with the number of layers
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True, "bos_token_id": 1,
        "eos_token_id": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        "max_position_embeddings": 64,
    }),
    "opt": ("OPTConfig", "OPTForCausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "word_embed_proj_dim": 32, "max_position_embeddings": 64,
    }),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": 2,
    }),
    "bert": ("BertConfig", "BertForSequenceClassification", {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "max_position_embeddings": 64, "num_labels": 3,
    }),
    "t5": ("T5Config", "T5ForConditionalGeneration", {
        "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4,
    }),
    "vit": ("ViTConfig", "ViTForImageClassification", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "image_size": 16,
        "patch_size": 8,
    }),
    "resnet": ("ResNetConfig", "ResNetForImageClassification", {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    }),
    "mobilenet": ("MobileNetV2Config", "MobileNetV2ForImageClassification", {
        "depth_multiplier": 0.25, "image_size": 32,
    }),
}  # fmt: skip


def configure(kind: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a kind, with fields changed."""
    config, architecture, fields = CONFIGS[kind]
    configured: PreTrainedConfig = getattr(transformers, config)(**{**fields, **changes})
    configured.architectures = [architecture]
    return configured
