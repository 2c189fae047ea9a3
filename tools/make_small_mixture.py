"""Make a small mixture of experts from a trained dense decoder, so that recipes for mixtures can be measured.

Usage: .venv/bin/python tools/make_small_mixture.py --dense FOLDER --text TEXT --output FOLDER [--steps 150]

Sparse upcycling (arXiv:2212.05055): every expert starts as the feed-forward layer of the dense model with some noise,
two of eight process a token, and training makes them differ.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

from graphprune.exporters.model_folders.folder_files import copy_companion_files
from graphprune.huggingface import model_folder
from graphprune.statistics import texts
from graphprune.support.atomic_output import new_folder

EXPERTS, NOISE, LENGTH, BATCH, RATE = 8, 0.5, 128, 8, 1e-3
COPIED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
          "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Make the mixture, train it, and write the folder."""
    options = parsed(arguments)
    torch.manual_seed(options.seed)
    tokenizer = model_folder.tokenizer(options.dense)
    windows = texts.windows(tokenizer, texts.read(options.text), LENGTH)
    model = upcycled(AutoModelForCausalLM.from_pretrained(options.dense, dtype=torch.float32))
    train(model, windows, options.steps)
    with new_folder(options.output, options.force) as folder:
        model.save_pretrained(folder)
        copy_companion_files(options.dense, folder)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True, help="a folder of the kind of Llama, with a tokenizer")
    parser.add_argument("--text", required=True, metavar="TEXT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace the output if there is one")
    return parser.parse_args(arguments)


def upcycled(dense: torch.nn.Module) -> MixtralForCausalLM:
    """A mixture whose experts are noisy copies of the feed-forward layers."""
    known = {name: getattr(dense.config, name) for name in COPIED if getattr(dense.config, name, None) is not None}
    config = MixtralConfig(**known, num_local_experts=EXPERTS, num_experts_per_tok=2, output_router_logits=True)
    model, old = MixtralForCausalLM(config), dense.state_dict()
    new = model.state_dict()
    new |= {name: value for name, value in old.items() if name in new}
    for i in range(config.num_hidden_layers):
        gate, up, down = (old[f"model.layers.{i}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        for name, matrix in (("gate_up_proj", torch.cat([gate, up])), ("down_proj", down)):
            noise = NOISE * matrix.std() * torch.randn(EXPERTS, *matrix.shape)
            new[f"model.layers.{i}.mlp.experts.{name}"] = matrix + noise
    model.load_state_dict(new)
    return model


def train(model: MixtralForCausalLM, windows: torch.Tensor, steps: int) -> None:
    """Predict the next token of random windows; experts are used alike by the loss of the model's class."""
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        ids = windows[torch.randint(len(windows), (BATCH,))]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        print(f"\rstep {step + 1} of {steps}: loss {loss.item():.2f}", end="", file=sys.stderr, flush=True)
    model.config.output_router_logits = False
    model.train(False)


if __name__ == "__main__":
    main()
