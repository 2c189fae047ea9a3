"""Models of transformers that see or hear, in tiny configurations."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.field.case import FieldModel, Inputs, normal, tokens
from tests.zoo.field.language import GROUPED, built

transformers: Any = import_module("transformers")
IMAGE = 5  # the token in whose place the features of an image stand
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SPOTS = 4  # tokens of an image


def _llava() -> nn.Module:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, image_size=28, patch_size=14),
        text_config=transformers.LlamaConfig(**GROUPED), image_token_id=IMAGE, image_seq_length=SPOTS,
    )  # fmt: skip
    return built(transformers.LlavaForConditionalGeneration, config)


def _gemma3() -> nn.Module:
    layers = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=8, layer_types=layers),
        vision_config=transformers.SiglipVisionConfig(**VISION, image_size=56, patch_size=14),
        mm_tokens_per_image=SPOTS, image_token_id=IMAGE, boi_token_id=6, eoi_token_id=7,
    )  # fmt: skip
    return built(transformers.Gemma3ForConditionalGeneration, config)


def _qwen() -> nn.Module:
    rotary = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14,
        "spatial_merge_size": 2, "window_size": 56, "fullatt_block_indexes": [1], "in_channels": 3,
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={**GROUPED, "rope_parameters": rotary}, vision_config=vision, image_token_id=IMAGE,
        vision_start_token_id=6, vision_end_token_id=7, video_token_id=8,
    )  # fmt: skip
    return built(transformers.Qwen2_5_VLForConditionalGeneration, config)


def _whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=128, num_mel_bins=16, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
        max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return built(transformers.WhisperForConditionalGeneration, config)


def _with_image(batch: int, seed: int) -> dict[str, Tensor]:
    """A text with an image in it."""
    ids = tokens(batch, 20, seed=seed)
    ids[:, 2] = 6
    ids[:, 3 : 3 + SPOTS] = IMAGE
    ids[:, 3 + SPOTS] = 7
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _llava_inputs(seed: int) -> Inputs:
    return (), {**_with_image(2, seed), "pixel_values": normal(2, 3, 28, 28, seed=seed)}


def _gemma3_inputs(seed: int) -> Inputs:
    text = _with_image(2, seed)
    kinds = (text["input_ids"] == IMAGE).long()
    return (), {**text, "pixel_values": normal(2, 3, 56, 56, seed=seed), "token_type_ids": kinds}


def _qwen_inputs(seed: int) -> Inputs:
    text = _with_image(1, seed)
    kinds = (text["input_ids"] == IMAGE).int()
    grid = torch.tensor([[1, 4, 4]])
    patches = normal(4 * SPOTS, 3 * 2 * 14 * 14, seed=seed)
    return (), {**text, "pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds}


def _whisper_inputs(seed: int) -> Inputs:
    return (), {"input_features": normal(2, 16, 100, seed=seed), "decoder_input_ids": tokens(2, 9, seed=seed)}


MODELS = {
    "transformers/llava": FieldModel(_llava, _llava_inputs),
    "transformers/gemma3 with images": FieldModel(_gemma3, _gemma3_inputs),
    "transformers/qwen2.5-vl": FieldModel(_qwen, _qwen_inputs, part="model.language_model"),  # the rest reads sizes
    "transformers/whisper": FieldModel(_whisper, _whisper_inputs),
}
