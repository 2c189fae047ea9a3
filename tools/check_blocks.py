"""Check that a saved Llama computes what its files say: its blocks in transformers against a plain computation.

Usage: .venv/bin/python tools/check_blocks.py FOLDER [--tokens 64]

The folder is loaded as any user would, in its own type; each block then runs in float32, one at a time, so that a model
of 7 billion parameters takes the memory of its files and little more. The plain computation reads the weights of one
block at a time from the files. The outputs of the second-to-last block are compared, relative to their largest number:
those of the last one are normalised, and hide some faults.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def main(arguments: list[str] | None = None) -> None:
    """Print how far both are apart; exit with 1 if that is too far."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args(arguments)
    config = json.loads((options.folder / "config.json").read_text())
    ids = torch.randint(config["vocab_size"], (1, options.tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        direct = plain(options.folder, config, ids)
        loaded = stock(options.folder, ids)
    apart = float((direct - loaded).abs().max() / direct.abs().max())
    print(
        f"{options.folder}: block {config['num_hidden_layers'] - 2} of {config['num_hidden_layers']}, {apart:.1e} apart"
    )
    sys.exit(apart > TOLERANCE)


def stock(folder: Path, ids: Tensor) -> Tensor:
    """The output of the second-to-last block of the model in transformers, each block in float32 while it runs."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    body, dtype = model.base_model, model.dtype
    body.embed_tokens.register_forward_hook(lambda _, __, out: out.float())
    for block in body.layers:
        block.register_forward_pre_hook(lambda block, _: block.float() and None)
        block.register_forward_hook(lambda block, _, out: (block.to(dtype), out)[1])
    found: Tensor = body(ids, use_cache=False, output_hidden_states=True).hidden_states[
        -2
    ]  # the last one is normalised
    return found


def plain(folder: Path, config: dict[str, Any], ids: Tensor) -> Tensor:
    """Output of the second-to-last block, computed from the weight files and the configuration alone."""
    files: list[Any] = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
    place = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def weight(name: str) -> Tensor:
        found: Tensor = place[f"model.{name}.weight"].get_tensor(f"model.{name}.weight").float()
        return found

    x = weight("embed_tokens")[ids]
    for i in range(config["num_hidden_layers"] - 1):
        own = f"layers.{i}."
        x = x + attention(normed(x, weight(own + "input_layernorm"), config), own + "self_attn.", weight, config)
        y = normed(x, weight(own + "post_attention_layernorm"), config)
        gate = silu(y @ weight(own + "mlp.gate_proj").T)
        x = x + (gate * (y @ weight(own + "mlp.up_proj").T)) @ weight(own + "mlp.down_proj").T
    return x


def normed(x: Tensor, scale: Tensor, config: dict[str, Any]) -> Tensor:
    """RMSNorm (Zhang and Sennrich, arXiv:1910.07467)."""
    return scale * x * (x.square().mean(-1, keepdim=True) + float(config["rms_norm_eps"])).rsqrt()


def attention(x: Tensor, own: str, weight: Any, config: dict[str, Any]) -> Tensor:
    """Causal attention of heads that share keys and values in groups."""
    width = config["head_dim"]
    query, key, value = (
        (x @ weight(own + f"{name}_proj").T).unflatten(-1, (-1, width)).transpose(1, 2) for name in "qkv"
    )
    seen = scaled_dot_product_attention(
        turned(query, config), turned(key, config), value, is_causal=True, enable_gqa=True
    )
    out: Tensor = seen.transpose(1, 2).flatten(2) @ weight(own + "o_proj").T
    return out


def turned(x: Tensor, config: dict[str, Any]) -> Tensor:
    """Rotary positions (Su et al., arXiv:2104.09864), for halves of a head."""
    half = x.shape[-1] // 2
    base = (config.get("rope_parameters") or config)["rope_theta"]
    angles = torch.arange(x.shape[-2])[:, None] * base ** (-torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1)


if __name__ == "__main__":
    main()
