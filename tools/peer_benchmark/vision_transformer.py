"""A vision transformer for small images, with a stem of convolutions."""

from typing import Any

from torch import Tensor, nn, randn
from torch.nn.functional import scaled_dot_product_attention

WIDTH, HEADS, INNER, BLOCKS = 96, 3, 192, 6
STEM = ((24, 1), (48, 2), (96, 2))  # channels and strides
TOKENS = 64  # of images of 32 x 32 pixels


class HeadAttention(nn.Module):
    """Self-attention whose heads have the width that its weights give them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        """From tokens of shape (n, tokens, WIDTH) to the same."""
        n, tokens, _ = x.shape
        q, k, v = (layer(x).view(n, tokens, HEADS, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = scaled_dot_product_attention(q, k, v)
        return self.output(mixed.transpose(1, 2).reshape(n, tokens, -1))


class EncoderBlock(nn.Module):
    """Attention and two linear layers, each after a layer norm and with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), HeadAttention()
        self.widen, self.act, self.narrow = nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Any:
        """From tokens of shape (n, tokens, WIDTH) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(self.act(self.widen(self.norm2(x))))


class SmallVisionTransformer(nn.Module):
    """Vision transformer (arXiv:2010.11929) with a stem of convolutions (arXiv:2106.14881), without a class token."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        wide = 3
        for channels, stride in STEM:
            layers += [nn.Conv2d(wide, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            wide = channels
        self.stem = nn.Sequential(*layers, nn.Conv2d(wide, WIDTH, 1))
        self.positions = nn.Parameter(0.02 * randn(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(EncoderBlock() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def hints(self) -> dict[str, Any]:
        """What Torch-Pruning needs to know: which layers have heads, and which dimension of the positions is one."""
        attentions = [layer for layer in self.modules() if isinstance(layer, HeadAttention)]
        heads = {layer: HEADS for one in attentions for layer in (one.query, one.key, one.value)}
        return {"num_heads": heads, "prune_head_dims": True, "unwrapped_parameters": [(self.positions, 2)]}

    def forward(self, x: Tensor) -> Any:
        """From images of shape (n, 3, 32, 32) to logits of shape (n, classes)."""
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))
