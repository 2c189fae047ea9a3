"""What the names of a configuration's attributes do not tell: fields and inputs of single model types."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import PreTrainedConfig

DEFAULT = object()  # a field that keeps the value of the configuration's own default
Fields = Mapping[str, Any]
MakeInputs = Callable[[PreTrainedConfig, int, Generator], dict[str, Tensor]]

_INDEXER = {  # without one its layers cannot be built
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}  # fmt: skip
_CONVNEXT = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1], "num_stages": 4, "image_size": 64}
_ZAMBA = {
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
    "attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4,
}  # fmt: skip
_EFFICIENTNET = {"hidden_dim": 640, "image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5}
_DPT = {
    "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 32, 64, 64],
    "image_size": 64,
}  # fmt: skip

# by model type, or by task and model type where only that task needs it
FIELDS: Mapping[str | tuple[str, str], Fields] = {
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {
        "num_experts_per_tok": 2, "n_routed_experts": 4, "first_k_dense_replace": 1, "topk_method": "greedy",
    },
    "dots1": {
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_routed_experts": 4, "num_experts": 4,
        "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"], "num_layers": 2,
    },
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2,
        "num_hidden_layers": 2,
    },
    ("enc", "reformer"): {"is_decoder": False},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": _ZAMBA,
    "zamba2": {
        **_ZAMBA, "num_mem_blocks": 1, "n_mamba_heads": 4, "mamba_headdim": 32, "mamba_ngroups": 1,
        "mamba_d_state": 16, "chunk_size": 8, "adapter_rank": 8,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "esm": {"vocab_size": 128, "pad_token_id": 1, "mask_token_id": 32},
    "layoutlmv3": {
        "input_size": 32, "coordinate_size": 10, "shape_size": 12, "patch_size": 8, "visual_embed": False,
    },
    "layoutlm": {"max_2d_position_embeddings": 128},
    "lilt": {"channel_shrink_ratio": 4, "max_2d_position_embeddings": 128, "hidden_size": 96},
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "num_groups": 8, "image_size": 64},
    "efficientnet": _EFFICIENTNET,
    "hgnet_v2": {"hidden_sizes": DEFAULT, "embedding_size": DEFAULT, "depths": DEFAULT},
    "textnet": {"hidden_sizes": DEFAULT, "stem_hidden_sizes": DEFAULT, "image_size": 64},
    "align": {"projection_dim": 160, "vision_config": _EFFICIENTNET},
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "wav2vec2-bert": {"feature_projection_input_dim": 32},
    "videomae": {"num_frames": 4, "image_size": 32},
    ("depth", "dpt"): _DPT,
}  # fmt: skip
# model types of which several classes do one task
ARCHITECTURES = {"deit": "DeiTForImageClassification", "levit": "LevitForImageClassification"}


def merged(fields: Fields, changes: Fields) -> dict[str, Any]:
    """`fields` with `changes`, in nested configurations too."""
    found = dict(fields)
    for name, value in changes.items():
        if value is DEFAULT:
            found.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            found[name] = merged(found[name], value)
        else:
            found[name] = value
    return found


def _spectrogram(config: Any, batch: int, generator: Generator) -> dict[str, Tensor]:
    return {"input_values": torch.randn(batch, config.max_length, config.num_mel_bins, generator=generator)}


def _filter_bank(config: Any, batch: int, generator: Generator) -> dict[str, Tensor]:
    features = torch.randn(batch, 40, config.feature_projection_input_dim, generator=generator)
    return {"input_features": features}


def _video(config: Any, batch: int, generator: Generator) -> dict[str, Tensor]:
    shape = (batch, config.num_frames, 3, config.image_size, config.image_size)
    return {"pixel_values": torch.randn(shape, generator=generator)}


# whose inputs are not those of their task
INPUTS: Mapping[tuple[str, str], MakeInputs] = {
    ("aud", "audio-spectrogram-transformer"): _spectrogram,
    ("aud", "wav2vec2-bert"): _filter_bank,
    ("base", "videomae"): _video,
}
