"""The smallest model of each family of timm, and torchvision's models; both packages are optional."""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from tests.zoo.refill import refill, seed_of
from tests.zoo.torchvision_operators import import_torchvision

Arguments = dict[str, Any]

CLASSES = 10
_SMALL = {"embed_dim": 96, "depth": 2, "num_heads": 4}
# of families without a small architecture
TIMM_ARGUMENTS: dict[str, Arguments] = {
    "beit_base_patch16_224": _SMALL,
    "deepseek_vit_412m": _SMALL,
    "gemma4_vit_167m_enc": _SMALL,
    "qwen3_vit_88m": _SMALL,
    "naflexvit_base_patch16_parfac_gap": _SMALL,
    "samvit_base_patch16_224": {**_SMALL, "depth": 4, "global_attn_indexes": (1, 3)},
    "deit_tiny_patch16_224": {"depth": 2},
}
_PLAIN = {"init_weights": False, "aux_logits": False}
_NO_BACKBONE = {"weights_backbone": None}
TORCHVISION_ARGUMENTS: dict[str, Arguments] = {
    "inception_v3": _PLAIN,
    "fcn_resnet50": _NO_BACKBONE,
    "deeplabv3_mobilenet_v3_large": _NO_BACKBONE,
}
PAIR = "raft_small"  # takes two images and knows no classes
TORCHVISION_SHAPES = {
    "inception_v3": (3, 299, 299), "r3d_18": (3, 8, 56, 56), "mc3_18": (3, 8, 56, 56), "r2plus1d_18": (3, 8, 56, 56),
    "mvit_v1_b": (3, 16, 224, 224), PAIR: (3, 128, 128),
}  # fmt: skip


def build_timm(architecture: str, unique: bool = True) -> nn.Module:
    """A model of timm; see `zoo.get`."""
    timm = _timm()
    torch.manual_seed(seed_of(architecture))
    arguments = TIMM_ARGUMENTS.get(architecture, {})
    model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=CLASSES, **arguments).eval()
    return refill(model, seed_of(architecture, 1)) if unique else model


def inputs_timm(architecture: str, batch: int = 2, seed: int = 0) -> tuple[tuple[Any, ...], Arguments]:
    """Random images of the size that the architecture was made for."""
    pretrained = _timm().get_pretrained_cfg(architecture, allow_unregistered=True)
    size = tuple(pretrained.input_size) if pretrained else (3, 224, 224)
    if pretrained and pretrained.min_input_size and not pretrained.fixed_input_size:
        size = tuple(pretrained.min_input_size)
    return (torch.randn(batch, *size, generator=_generator(architecture, seed)),), {}


def build_torchvision(name: str, unique: bool = True) -> nn.Module:
    """A model of torchvision; see `zoo.get`."""
    torchvision = import_torchvision()
    torch.manual_seed(seed_of(name))
    arguments = {"num_classes": CLASSES, **TORCHVISION_ARGUMENTS.get(name, {})} if name != PAIR else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **arguments).eval()
    return refill(model, seed_of(name, 1)) if unique else model


def inputs_torchvision(name: str, batch: int = 2, seed: int = 0) -> tuple[tuple[Any, ...], Arguments]:
    """Random images or videos."""
    generator = _generator(name, seed)
    shape = (batch, *TORCHVISION_SHAPES.get(name, (3, 224, 224)))
    return tuple(torch.randn(shape, generator=generator) for _ in range(2 if name == PAIR else 1)), {}


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(name, 7 + seed))


def _timm() -> Any:
    import_torchvision()  # timm imports it, and it may need help
    return import_module("timm")
