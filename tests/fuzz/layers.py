"""Layers as models have them, for random graphs: nested modules with attributes, tables, shared and raw parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scale(nn.Module):
    """A parameter that meets a value by broadcasting."""

    def __init__(self, shape: tuple[int, ...], f: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.f = nn.Parameter(torch.zeros(shape)), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.weight)


class Constant(nn.Module):
    """The same with a buffer."""

    def __init__(self, shape: tuple[int, ...], f: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.values, self.f = nn.Buffer(torch.zeros(shape)), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.values)


class Table(nn.Module):
    """A table of which fixed rows are read, to be added to a value."""

    def __init__(self, rows: int, width: int, index: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.index, self.pick = nn.Parameter(torch.zeros(rows, width)), nn.Buffer(index), pick

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pick(self.table, self.index)


class Indexed(nn.Module):
    """A function of a value and of stored indices, or of a stored mask."""

    def __init__(self, index: Tensor, f: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.index, self.f = nn.Buffer(index), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.index)


class Computed(nn.Module):
    """A linear map whose weight is computed from two parameters."""

    def __init__(self, first: tuple[int, ...], second: tuple[int, ...], f: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.f = nn.Parameter(torch.zeros(first)), nn.Parameter(torch.zeros(second)), f

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.f(self.first, self.second))


class Norm(nn.Module):
    """A norm of the last dimension, written by hand."""

    def __init__(self, features: int, center: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.center = center

    def forward(self, x: Tensor) -> Tensor:
        if self.center:
            x = x - x.mean(-1, keepdim=True)
        y: Tensor = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight
        return y + self.bias if self.center else y


class FeedForward(nn.Module):
    """Up, an activation, perhaps a gate, and down."""

    def __init__(self, features: int, hidden: int, out: int, gate: str) -> None:
        super().__init__()
        self.hidden, self.gated = hidden, gate
        self.up = nn.Linear(features, hidden * (2 if gate == "fused" else 1))
        self.gate = nn.Linear(features, hidden, bias=False) if gate == "two" else None
        self.down = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Any:
        y = self.up(x)
        if self.gated == "fused":
            a, b = y.chunk(2, dim=-1)
            y = F.silu(a) * b
        elif self.gate is not None:
            y = F.gelu(self.gate(x)) * y
        return self.down(F.relu(y) if self.gated == "none" else y)


@dataclass(frozen=True)
class Heads:
    """How attention is laid out: `order` of heads, parts and sizes in a fused projection, "" for three projections."""

    heads: int
    groups: int
    size: int
    order: str
    rotary: str
    fused: bool
    causal: bool
    norm: bool


class Attention(nn.Module):
    """Self-attention in the many ways in which it is written."""

    def __init__(self, features: int, out: int, layout: Heads) -> None:
        super().__init__()
        self.heads, self.groups, self.head_dim, self.layout = layout.heads, layout.groups, layout.size, layout
        query, other = layout.heads * layout.size, layout.groups * layout.size
        if layout.order:
            self.qkv = nn.Linear(features, 3 * query)
        else:
            self.q, self.k, self.v = (nn.Linear(features, n) for n in (query, other, other))
        self.q_norm = nn.RMSNorm(layout.size) if layout.norm else nn.Identity()
        self.out = nn.Linear(query, out)
        self.frequencies = nn.Buffer(torch.zeros(layout.size // 2))

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.project(x)
        q = self.q_norm(q)
        if self.layout.rotary:
            q, k = (self.rotate(t, x.shape[1]) for t in (q, k))
        y = self.attend(q, k, v).transpose(1, 2)
        return self.out(y.reshape(x.shape[0], x.shape[1], -1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, of shape (batch, heads, tokens, size)."""
        b, s, _ = x.shape
        if not self.layout.order:
            q = self.q(x).view(b, s, self.heads, self.head_dim).transpose(1, 2)
            k, v = (f(x).view(b, s, self.groups, self.head_dim).transpose(1, 2) for f in (self.k, self.v))
            return q, k, v
        y = self.qkv(x)
        if self.layout.order == "parts":
            q, k, v = y.view(b, s, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.layout.order == "split":
            q, k, v = (t.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for t in y.chunk(3, -1))
        else:
            q, k, v = y.view(b, s, self.heads, 3 * self.head_dim).transpose(1, 2).split(self.head_dim, -1)
        return q, k, v

    def rotate(self, x: Tensor, tokens: int) -> Tensor:
        """Turn pairs of features by an angle that grows with the position."""
        angles = torch.arange(tokens, dtype=x.dtype)[:, None] * self.frequencies
        if self.layout.rotary == "halves":
            angles = torch.cat((angles, angles), -1)
            a, b = x.chunk(2, -1)
            return x * angles.cos() + torch.cat((-b, a), -1) * angles.sin()
        a, b = x[..., ::2], x[..., 1::2]
        cos, sin = angles.cos(), angles.sin()
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention by the fused operator, or spelled out."""
        if self.layout.fused:
            gqa = not self.layout.order and self.groups < self.heads
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.layout.causal, enable_gqa=gqa)
        times = q.shape[1] // k.shape[1]
        k, v = (t.repeat_interleave(times, dim=1) if times > 1 else t for t in (k, v))
        scores: Tensor = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        if self.layout.causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
            scores = scores.masked_fill(~mask, -1e9)
        return scores.softmax(-1) @ v


class Block(nn.Module):
    """A layer on a residual path, behind a norm."""

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x: Tensor) -> Any:
        return x + self.layer(self.norm(x))


class Excite(nn.Module):
    """Channels of an image weighed by what is seen of all of them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Any:
        seen = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.b(F.relu(self.a(seen))))


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut, which has a convolution of its own where the channels change."""

    def __init__(self, channels: int, hidden: int, out: int, groups: int) -> None:
        super().__init__()
        self.a, self.first = nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.b, self.second = nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups), nn.BatchNorm2d(hidden)
        self.c = nn.Conv2d(hidden, out, 1)
        self.shortcut: nn.Module = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.first(self.a(x)))
        return self.c(F.relu(self.second(self.b(y)))) + self.shortcut(x)


class Last(nn.Module):
    """The first output of a layer that has several."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0]
