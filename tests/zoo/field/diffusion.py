"""Denoisers and an autoencoder of diffusers, in tiny configurations."""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from tests.zoo.field.case import FieldModel, Inputs, normal, uniform

PACKAGES = ("diffusers",)
CONTEXT = 7  # tokens of the text
STEPS = (3, 7)  # of the diffusion, one an image


def _make(kind: str, **fields: Any) -> nn.Module:
    library: Any = import_module("diffusers")
    model: nn.Module = getattr(library, kind)(**fields)
    return model


def _unet() -> nn.Module:
    return _make(
        "UNet2DConditionModel", sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def _dit() -> nn.Module:
    return _make(
        "DiTTransformer2DModel", num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8,
        num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip


def _sd3() -> nn.Module:
    return _make(
        "SD3Transformer2DModel", sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=24,
        out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip


def _flux() -> nn.Module:
    return _make(
        "FluxTransformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=2,
        attention_head_dim=16, num_attention_heads=4, joint_attention_dim=32, pooled_projection_dim=24,
        axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip


def _vae() -> nn.Module:
    return _make(
        "AutoencoderKL", block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=32,
    )  # fmt: skip


def _steps(seed: int) -> torch.Tensor:
    return torch.tensor(STEPS) + seed


def _unet_inputs(seed: int) -> Inputs:
    return (normal(2, 4, 16, 16, seed=seed), _steps(seed), normal(2, CONTEXT, 32, seed=seed + 1)), {}


def _dit_inputs(seed: int) -> Inputs:
    named = {"timestep": _steps(seed), "class_labels": torch.tensor([1, 2]) + seed % 5}
    return (normal(2, 4, 8, 8, seed=seed),), named


def _sd3_inputs(seed: int) -> Inputs:
    return (), {
        "hidden_states": normal(2, 4, 8, 8, seed=seed), "encoder_hidden_states": normal(2, CONTEXT, 32, seed=seed + 1),
        "pooled_projections": normal(2, 24, seed=seed + 2), "timestep": _steps(seed),
    }  # fmt: skip


def _flux_inputs(seed: int) -> Inputs:
    return (), {
        "hidden_states": normal(2, 16, 16, seed=seed), "encoder_hidden_states": normal(2, CONTEXT, 32, seed=seed + 1),
        "pooled_projections": normal(2, 24, seed=seed + 2), "timestep": uniform(2, seed=seed),
        "img_ids": uniform(16, 3, seed=seed), "txt_ids": torch.zeros(CONTEXT, 3), "guidance": torch.tensor([3.5, 2.0]),
    }  # fmt: skip


def _image(seed: int) -> Inputs:
    return (normal(2, 3, 32, 32, seed=seed),), {}


MODELS = {
    "diffusers/unet of stable diffusion": FieldModel(_unet, _unet_inputs, PACKAGES),
    "diffusers/dit": FieldModel(_dit, _dit_inputs, PACKAGES),
    "diffusers/stable diffusion 3": FieldModel(_sd3, _sd3_inputs, PACKAGES),
    "diffusers/flux": FieldModel(_flux, _flux_inputs, PACKAGES),
    "diffusers/autoencoder": FieldModel(_vae, _image, PACKAGES),
}
