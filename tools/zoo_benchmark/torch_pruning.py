"""Torch-Pruning 1.6, as its README ("High-level Pruners") and its examples use it.

Ignored are the layers that make the outputs. Attention layers are declared by `num_heads`, and attributes are set
after the cut, as examples/transformers/prune_hf_bert.py, examples/LLMs/prune_llm.py and
examples/timm_models/prune_timm_models.py do. Groups that hold a norm are left out through "Interactive Pruning", to
the effect of `--bottleneck` of examples/transformers/prune_timm_vit.py: only the inner layers of blocks are pruned.
"""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from tests import zoo
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.judge import Inputs
from tools.zoo_benchmark.peers import Prune, normalises, run_all
from tools.zoo_benchmark.record import Report
from tools.zoo_benchmark.subject import Subject

NAME = "torch-pruning"
PACKAGE = "torch_pruning"
SEPARATE = (
    ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"),
    ("query_proj", "key_proj", "value_proj"), ("linear_q", "linear_k", "linear_v"), ("wq", "wk", "wv"),
)  # fmt: skip
FUSED = ("qkv", "qkv_proj", "query_key_value", "Wqkv", "in_proj_qkv")
DOUBLED = ("gate_up_proj",)  # a gate and what it gates in one layer
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
HEAD_WIDTHS = ("head_dim", "attention_head_size", "head_size")
WIDTHS = ("all_head_size", "hidden_size", "embed_dim", "inner_dim", "attn_dim")


def run(subject: Subject, report: Report, goal: Goal) -> None:
    """Prune by magnitude, whole heads or parts of all heads, with and without what norms normalise."""
    modes: dict[str, Prune] = {
        "head dimensions, no norms": partial(_prune, heads=False, norms=False),
        "heads, no norms": partial(_prune, heads=True, norms=False),
        "head dimensions": partial(_prune, heads=False, norms=True),
        "heads": partial(_prune, heads=True, norms=True),
    }
    run_all(modes, subject, report, goal.share)


def _prune(model: nn.Module, example: Inputs, ratio: float, *, heads: bool, norms: bool) -> None:
    """Prune a model in place."""
    tools: Any = import_module(PACKAGE)
    attention = list(_attention(model))
    before = {layer: layer.out_features for _, layers in attention for layer in layers}
    pruner = tools.pruner.BasePruner(
        model,
        dict(example[1]) if example[1] else list(example[0]),
        importance=tools.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=output_layers(model, example),
        in_channel_groups={},
        out_channel_groups={layer: 2 for path, layer in model.named_modules() if path.endswith(DOUBLED)},
        num_heads={layer: number for _, layers in attention for layer, number in layers.items()},
        prune_num_heads=heads,
        prune_head_dims=not heads,
        head_pruning_ratio=ratio if heads else 0.0,
        output_transform=zoo.tensors,
    )
    for group in pruner.step(interactive=True):
        if norms or not _holds_norm(model, group):
            group.prune()
    for layer, layers in attention:
        _follow(layer, [(before[one], one.out_features, pruner.num_heads[one]) for one in layers])


def _attention(model: nn.Module) -> Iterator[tuple[nn.Module, dict[nn.Linear, int]]]:
    """Attention layers, with the linear layers in them that make queries, keys and values, and their heads."""
    config = getattr(model, "config", None)
    for layer in model.modules():
        heads = _first(layer, HEADS) or _first(config, HEADS)
        projections = _projections(layer)
        if not projections or not heads:
            continue
        key_heads = _first(layer, KEY_HEADS) or _first(config, KEY_HEADS) or heads
        yield layer, {one: heads if i == 0 else key_heads for i, one in enumerate(projections)}


def _projections(layer: nn.Module) -> list[nn.Linear]:
    """One fused or three separate linear layers, queries first; nothing if this is no attention layer."""
    for names in (*SEPARATE, *((name,) for name in FUSED)):
        projections = [one for name in names if isinstance(one := getattr(layer, name, None), nn.Linear)]
        if len(projections) == len(names):
            return projections
    return []


def _first(thing: object, names: tuple[str, ...]) -> int | None:
    values = (getattr(thing, name, None) for name in names)
    return next((value for value in values if type(value) is int), None)


def _follow(layer: nn.Module, changed: list[tuple[int, int, int]]) -> None:
    """Set the sizes that an attention layer's forward reads; `changed`: width before, width now, heads now."""
    before, now, heads = changed[0]
    key_heads = changed[-1][2]
    fused = 3 if len(changed) == 1 else 1
    new = dict.fromkeys(HEADS, heads) | dict.fromkeys(KEY_HEADS, key_heads)
    new |= dict.fromkeys(HEAD_WIDTHS, now // fused // heads) | {"num_key_value_groups": heads // key_heads}
    new |= {name: now // fused for name in WIDTHS if getattr(layer, name, None) == before // fused}
    for name, value in new.items():
        if type(getattr(layer, name, None)) is int:
            setattr(layer, name, value)


def _holds_norm(model: nn.Module, group: Any) -> bool:
    """Would pruning a group change what a norm normalises?"""
    norms = [layer for layer in model.modules() if normalises(layer)]
    own = {id(thing) for norm in norms for thing in (norm, *norm.parameters(recurse=False))}
    return any(id(dependency.target.module) in own for dependency, _ in group)


@torch.no_grad()
def output_layers(model: nn.Module, example: Inputs) -> list[nn.Module]:
    """The layers whose outputs the model returns; where it computes with them first, the last with that shape."""
    made: list[tuple[nn.Module, Tensor]] = []

    def note(layer: nn.Module, _: Any, output: Any) -> None:
        made.extend((layer, tensor) for tensor in zoo.tensors(output))

    weighted = [layer for layer in model.modules() if any(True for _ in layer.parameters(recurse=False))]
    hooks = [layer.register_forward_hook(note) for layer in weighted]
    outputs = zoo.tensors(model(*example[0], **example[1]))
    for hook in hooks:
        hook.remove()
    return [layer for output in outputs for layer in _makers(made, output)]


def _makers(made: list[tuple[nn.Module, Tensor]], output: Tensor) -> list[nn.Module]:
    place = output.untyped_storage().data_ptr()
    same = [layer for layer, tensor in made if tensor.untyped_storage().data_ptr() == place]
    alike = [layer for layer, tensor in made if tensor.shape == output.shape] or [layer for layer, _ in made]
    return same or alike[-1:]
