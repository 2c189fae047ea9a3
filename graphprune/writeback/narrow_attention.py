"""Narrow multi-head attention: `nn.MultiheadAttention` with other widths of its heads than those of its input."""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Dependencies
from graphprune.support.undo import Undo


class NarrowMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention whose widths follow from the shapes of its weights and its number of heads.

    `score_scale` is that of the original head dim. Parameters have the names they had.
    """

    score_scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and, where needed, the weights of the attention, as `nn.MultiheadAttention` does."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched, first = query.dim() == 3, query.dim() == 3 and self.batch_first
        q, k, v = (
            x if first else x.transpose(0, 1) if batched else x[None] for x in self._projected(query, key, value)
        )
        k, v = self._extended(k, self.bias_k), self._extended(v, self.bias_v)
        q, k, v = (x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        padding = key_padding_mask if key_padding_mask is None or batched else key_padding_mask[None]
        mask = self._mask(padding, attn_mask, q, k)
        output, weights = self._attended(q, k, v, mask, need_weights)
        output = self.out_proj(output.transpose(1, 2).flatten(2))
        output = output if first else output.transpose(0, 1) if batched else output[0]
        if weights is None:
            return output, None
        weights = weights.mean(1) if average_attn_weights else weights
        return output, weights if batched else weights[0]

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        values = self.out_proj.in_features
        if self.in_proj_weight is None:
            weights: Any = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
            sizes = [weight.shape[0] for weight in weights]
        else:
            scores = (self.in_proj_weight.shape[0] - values) // 2
            sizes = [scores, scores, values]
            weights = torch.split(self.in_proj_weight, sizes)
        biases: Any = [None] * 3 if self.in_proj_bias is None else torch.split(self.in_proj_bias, sizes)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]

    def _extended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values with those that the layer itself adds, with the batch first."""
        if bias is not None:
            x = torch.cat([x, bias.expand(x.shape[0], 1, -1)], 1)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _mask(self, padding: Tensor | None, mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Sum of both masks as numbers, of shape (batch or 1, heads or 1, queries or 1, keys)."""
        parts = []
        if mask is not None:
            mask = _as_numbers(mask, q)
            parts.append(mask.view(-1, self.num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask[None, None])
        if padding is not None:
            parts.append(_as_numbers(padding, q)[:, None, None])
        added = [F.pad(part, (0, k.shape[2] - part.shape[-1])) for part in parts]
        return sum(added[1:], added[0]) if added else None

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.score_scale), None
        scores = q @ k.mT * self.score_scale
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        return weights @ v, weights


def _as_numbers(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to add to scores; True of a boolean one excludes."""
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask


def convert(undo: Undo, module: nn.Module, dependencies: Dependencies, widths: Mapping[Prime, int]) -> bool:
    """Convert the multi-head attentions in a module whose heads were cut; return whether there are any."""
    converted = False
    for path, layer in module.named_modules():
        name = f"{path}.in_proj_weight".removeprefix(".")
        name = name if getattr(layer, "in_proj_weight", None) is not None else name.replace("in_proj", "q_proj")
        if type(layer) not in (nn.MultiheadAttention, NarrowMultiheadAttention) or name not in dependencies.tensors:
            continue
        axis = dependencies.tensors[name][0]
        if any(p in widths for p in primes(axis)):
            axes = list(primes(axis))
            shared = layer.in_proj_weight is not None and prod(p.size for p in axes) == axis.size
            _convert(undo, layer, _heads(layer.num_heads, axes[1:] if shared else axes, widths))
            converted = True
    for encoder in module.modules() if converted else ():
        if isinstance(encoder, nn.TransformerEncoder):
            undo.set_item(vars(encoder), "use_nested_tensor", False)  # its kernels read the weights of the layers
    return converted


def _heads(heads: int, axes: list[Prime], widths: Mapping[Prime, int]) -> int:
    """Number of heads after the cut: the outermost axes of the queries are those of the heads.

    Where queries, keys and values share their axes, the axis of the three is not among `axes`.
    """
    old, new = 1, 1
    for p in axes:
        if old >= heads:
            break
        old, new = old * p.size, new * widths.get(p, p.size)
    return new if old == heads else heads


def _convert(undo: Undo, layer: nn.MultiheadAttention, heads: int) -> None:
    sizes = vars(layer)
    scale = getattr(layer, "score_scale", layer.head_dim**-0.5)
    values = layer.out_proj.weight.shape[1]
    packed = layer.in_proj_weight
    scores = layer.q_proj_weight.shape[0] if packed is None else (packed.shape[0] - values) // 2
    weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight) if packed is None else (packed,) * 3
    new = dict(zip(("embed_dim", "kdim", "vdim"), (weight.shape[1] for weight in weights), strict=True))
    new |= {"num_heads": heads, "head_dim": scores // heads, "score_scale": scale}
    # the fused kernels of `nn.TransformerEncoderLayer` are for layers whose widths are all the same
    for name, value in {**new, "_qkv_same_embed_dim": False}.items():
        undo.set_item(sizes, name, value)
    undo.set_class(layer, NarrowMultiheadAttention)
