"""Write a large random decoder, dense or a mixture, as a Hugging Face folder in bfloat16, a tensor in memory at a time.

Usage: .venv/bin/python tools/make_random_model.py --tokenizer FOLDER --output FOLDER [--hidden 2048 --layers 16 ...]

The sizes are those of Llama-2-7B unless others are given: about 13.5 GB. The numbers are drawn so that activations stay
near one, always the same for a seed. The tokenizer is that of another folder, so that texts can be read.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from graphprune.exporters.model_folders.folder_files import copy_companion_files, write_config
from graphprune.huggingface import model_folder
from graphprune.huggingface.meta_models import on_meta
from graphprune.ir.weight_files import distinct, write_shards
from graphprune.support.atomic_output import new_folder

SIZES = {"hidden": 4096, "layers": 32, "heads": 32, "kv-heads": 32, "intermediate": 11008, "vocab": 32000}
DTYPE = torch.bfloat16


def main(arguments: list[str] | None = None) -> None:
    """Write the folder, and say how far it has come."""
    options = parsed(arguments)
    tokenizer = model_folder.tokenizer(options.tokenizer)
    if len(tokenizer) > options.vocab:
        sys.exit(f"the tokenizer of {options.tokenizer} has {len(tokenizer)} tokens, more than --vocab {options.vocab}")
    settings = config(options, tokenizer)
    with new_folder(options.output, options.force) as folder:
        copy_companion_files(options.tokenizer, folder)
        write_config(folder, settings, DTYPE)
        write(folder, distinct(on_meta(settings)), options.seed, int(options.shard * 10**9))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder whose tokenizer is copied")
    parser.add_argument("--output", type=Path, required=True)
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--experts", type=int, default=0, help="in every layer, two of which process a token")
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--shard", type=float, default=5.0, help="GB in a file at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace the output if there is one")
    return parser.parse_args(arguments)


def config(options: argparse.Namespace, tokenizer: Any) -> PreTrainedConfig:
    kind, own = (MixtralConfig, {"num_local_experts": options.experts}) if options.experts else (LlamaConfig, {})
    made: PreTrainedConfig = kind(
        hidden_size=options.hidden, num_hidden_layers=options.layers, num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads, intermediate_size=options.intermediate, vocab_size=options.vocab,
        max_position_embeddings=4096, tie_word_embeddings=options.tied, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **own,
    )  # fmt: skip
    made.architectures = [f"{kind.__name__.removesuffix('Config')}ForCausalLM"]
    return made


def write(folder: Path, shapes: dict[str, Tensor], seed: int, limit: int) -> None:
    """Write a random tensor for each of the shapes."""
    skeleton = {name: tensor.to(DTYPE) for name, tensor in shapes.items()}
    seeds = {name: seed * len(skeleton) + i for i, name in enumerate(sorted(skeleton))}
    total, steps = sum(tensor.nbytes for tensor in skeleton.values()), progress(skeleton)

    def read(name: str) -> Tensor:
        print(f"\r{next(steps) / total:4.0%} of {total / 1e9:.1f} GB", end="", flush=True)
        return drawn(skeleton[name].shape, seeds[name])

    write_shards(folder, skeleton, read, limit=limit)
    print(f"\r100% of {total / 1e9:.1f} GB")


def progress(skeleton: dict[str, Tensor]) -> Iterator[int]:
    """How many bytes were written before each tensor."""
    done = 0
    for tensor in skeleton.values():
        yield done
        done += tensor.nbytes


def drawn(shape: torch.Size, seed: int) -> Tensor:
    """Weights of a norm are one; others keep the variance of what they multiply."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=DTYPE)
    generator = torch.Generator().manual_seed(seed)
    return nn.init.normal_(torch.empty(shape, dtype=DTYPE), std=1 / math.sqrt(shape[-1]), generator=generator)


if __name__ == "__main__":
    main()
