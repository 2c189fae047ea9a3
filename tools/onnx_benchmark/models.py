"""Small models of many kinds, exported to ONNX by both exporters of torch, at several opsets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from graphprune.exporters.subjects.model_caches import cache_of, named_cache

VOCABULARY = 64


@dataclass(frozen=True)
class Export:
    """File to be made: a model, the exporter, the opset, and whether sizes are dynamic."""

    name: str
    build: Callable[[], tuple[nn.Module, dict[str, Tensor]]]
    new: bool
    opset: int
    dynamic: bool

    @property
    def label(self) -> str:
        """Name with exporter, opset and kind of sizes."""
        kind = "new" if self.new else "old"
        return f"{self.name}-{kind}-{self.opset}-{'dynamic' if self.dynamic else 'static'}"

    def write(self, folder: Path) -> Path:
        """Write the file."""
        torch.manual_seed(0)
        module, inputs = self.build()
        perturb(module)
        path = folder / f"{self.label}.onnx"
        names, dims = list(inputs), [_dims(name, x) for name, x in inputs.items()]
        settings: dict[str, Any] = {"input_names": names, "opset_version": self.opset, "dynamo": self.new}
        if self.new and self.dynamic:
            arranged: Any = getattr(module, "arranged", tuple)
            settings["dynamic_shapes"] = arranged(dims)
        elif self.dynamic:
            settings["dynamic_axes"] = dict(zip(names, dims, strict=True))
        if self.new:
            settings |= {"external_data": False, "verbose": False}
        torch.backends.mha.set_fastpath_enabled(False)  # a fused operator, which the old exporter lacks
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(module.eval(), tuple(inputs.values()), str(path), **settings)
        return path


def perturb(module: nn.Module) -> None:
    """Make all weights random, so that norms and biases are not trivial."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and tensor.dim():
            scale = 0.1 if tensor.dim() == 1 or tensor.numel() < 2 else 0.5 * float(tensor.std())
            noise = scale * torch.randn_like(tensor)
            tensor.data += noise.abs() if "var" in name or tensor.dim() == 1 else noise


def _dims(name: str, x: Tensor) -> dict[int, str]:
    if name.startswith("past"):
        return {0: "batch", 2: "past"}
    if name == "attention_mask":
        return {0: "batch", 1: "total"}
    return {0: "batch"} if x.is_floating_point() else {0: "batch", 1: "sequence"}


class Wrapped(nn.Module):
    """A model of transformers called by position that returns a tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Any:
        result = self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)
        return result[0]

    def arranged(self, dims: list[Any]) -> Any:
        """Dynamic sizes in the form of the arguments."""
        return (tuple(dims),)


class Cached(nn.Module):
    """A decoder called with its cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> Any:
        cache = transformers.DynamicCache([(k, v) for k, v in zip(past[::2], past[1::2], strict=True)])
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **named_cache(self.model, cache), use_cache=True
        )
        new = [tensor for layer in cache_of(result).layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *new)

    def arranged(self, dims: list[Any]) -> Any:
        """Dynamic sizes in the form of the arguments."""
        return (*dims[:2], tuple(dims[2:]))


def _settings(kind: str) -> Any:
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
    image = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48}  # fmt: skip
    named: dict[str, Any] = {
        "Llama": {**small, "num_key_value_heads": 2}, "Mistral": {**small, "num_key_value_heads": 2, "head_dim": 8},
        "Qwen2": {**small, "num_key_value_heads": 2}, "Qwen3": {**small, "num_key_value_heads": 2, "head_dim": 8},
        "Gemma": {**small, "num_key_value_heads": 1, "head_dim": 8}, "Bert": small,
        "Roberta": {**small, "pad_token_id": 0},
        "Electra": {**small, "embedding_size": 32}, "ViT": image, "DeiT": image, "BertVocab": small,
        "DistilBert": {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
                       "max_position_embeddings": 64},
        "GPT2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "OPT": {"vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
        "GPTNeoX": {**small, "rotary_pct": 0.5},
        "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [2, 2], "layer_type": "basic"},
        "ConvNext": {"hidden_sizes": [16, 24], "depths": [1, 1], "num_stages": 2},
        "MobileNetV2": {"image_size": 64, "depth_multiplier": 0.25},
        "RegNet": {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [1, 1], "groups_width": 8},
    }  # fmt: skip
    return getattr(transformers, f"{kind}Config")(attn_implementation="eager", **named[kind])


def text(kind: str, head: str = "Model") -> tuple[nn.Module, dict[str, Tensor]]:
    """A text model without cache."""
    settings = _settings(kind)
    settings.use_cache = False
    model = getattr(transformers, f"{kind}{head}")(settings)
    ids = torch.randint(3, VOCABULARY, (2, 7))
    return Wrapped(model, ("input_ids", "attention_mask")), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def decoder(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A decoder with its cache as inputs and outputs."""
    settings = _settings(kind)
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(settings)
    heads = getattr(settings, "num_key_value_heads", settings.num_attention_heads)
    size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    ids = torch.randint(3, VOCABULARY, (2, 4))
    past = {f"past_key_values.{i}.{kind}": torch.randn(2, heads, 5, size)
            for i in range(settings.num_hidden_layers) for kind in ("key", "value")}  # fmt: skip
    mask = torch.ones(2, 9, dtype=torch.long)
    return Cached(model), {"input_ids": ids, "attention_mask": mask, **past}


def image(kind: str, side: int = 32) -> tuple[nn.Module, dict[str, Tensor]]:
    """An image classifier."""
    settings = _settings(kind)
    settings.num_labels = 5
    model = getattr(transformers, f"{kind}ForImageClassification")(settings)
    return Wrapped(model, ("pixel_values",)), {"pixel_values": torch.randn(2, 3, side, side)}


class UNet(nn.Module):
    """Convolutions down and up with a skip connection, transposed and by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up, self.c = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(32, 8, 3, padding=1)
        self.norm, self.d = nn.GroupNorm(4, 16), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.a(x))
        b = F.gelu(self.norm(self.b(a)))
        wide = F.interpolate(b, scale_factor=2, mode="nearest")
        joined = torch.cat([a, self.up(b), wide], 1)
        return torch.as_tensor(self.d(torch.relu(self.c(joined))))


class Excited(nn.Module):
    """Depthwise convolutions with squeeze and excitation, and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.wide, self.deep = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.down, self.back = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.out, self.head = nn.Conv2d(24, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x)))
        y = F.relu6(self.deep(F.hardswish(self.wide(x))))
        y = y * F.hardsigmoid(self.back(torch.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        x = F.max_pool2d(x + self.out(y), 3, 2, 1)
        return torch.as_tensor(self.head(x.mean((2, 3))))


class Mixer(nn.Module):
    """Layers over tokens and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.n1, self.n2 = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.LayerNorm(16)
        self.t1, self.t2, self.c1, self.c2 = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.n2(x))))
        return torch.as_tensor(self.head(x.mean(1)))


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.b = nn.Linear(6, 12), nn.LSTM(12, 10, batch_first=True), nn.Linear(10, 8)
        self.c = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.c(torch.tanh(self.b(self.lstm(torch.relu(self.a(x)))[0]))))


class Encoder(nn.Module):
    """Attention of torch itself."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True)
        self.a, self.layers, self.b = (
            nn.Linear(6, 32),
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(32, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.b(self.layers(self.a(x))))


def plain(kind: type[nn.Module], *shape: int) -> Callable[[], tuple[nn.Module, dict[str, Tensor]]]:
    """A model of this file."""
    return lambda: (kind(), {"x": torch.randn(*shape)})


def exports() -> Iterator[Export]:
    """Forty files."""
    picture = (2, 3, 32, 32)
    for name, build, opsets in (
        ("resnet", lambda: image("ResNet"), ((False, 11), (True, 18))),
        ("convnext", lambda: image("ConvNext"), ((False, 17), (True, 20))),
        ("mobilenet", lambda: image("MobileNetV2", 64), ((False, 13), (True, 18))),
        ("regnet", lambda: image("RegNet"), ((False, 14), (True, 18))),
        ("vit", lambda: image("ViT"), ((False, 17), (True, 18))),
        ("deit", lambda: image("DeiT"), ((True, 23),)),
        ("unet", plain(UNet, *picture), ((False, 13), (True, 21))),
        ("excited", plain(Excited, *picture), ((False, 11), (True, 18))),
        ("mixer", plain(Mixer, *picture), ((False, 12), (True, 24))),
        ("lstm", plain(Recurrent, 2, 5, 6), ((False, 15), (True, 18))),
        ("encoder", plain(Encoder, 2, 5, 6), ((False, 17), (True, 18))),
        ("bert", lambda: text("Bert", "ForSequenceClassification"), ((False, 14), (True, 18))),
        ("distilbert", lambda: text("DistilBert", "ForSequenceClassification"), ((False, 16), (True, 18))),
        ("roberta", lambda: text("Roberta"), ((False, 17), (True, 19))),
        ("electra", lambda: text("Electra"), ((True, 18),)),
        ("gpt2", lambda: text("GPT2", "LMHeadModel"), ((True, 18),)),
        ("opt", lambda: text("OPT", "ForCausalLM"), ((True, 18),)),
        ("neox", lambda: text("GPTNeoX", "ForCausalLM"), ((True, 18),)),
        ("gemma", lambda: text("Gemma", "ForCausalLM"), ((True, 18),)),
        ("llama-cache", lambda: decoder("Llama"), ((True, 18), (True, 23))),
        ("qwen2-cache", lambda: decoder("Qwen2"), ((True, 20),)),
        ("qwen3-cache", lambda: decoder("Qwen3"), ((True, 18),)),
        ("mistral-cache", lambda: decoder("Mistral"), ((True, 18),)),
        ("gpt2-cache", lambda: decoder("GPT2"), ((True, 18),)),
    ):
        for i, (new, opset) in enumerate(opsets):
            yield Export(name, build, new, opset, True)
            if i == 0 and name in ("resnet", "vit", "bert", "unet"):
                yield Export(name, build, new, opset, False)
