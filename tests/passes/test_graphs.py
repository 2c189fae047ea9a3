"""Graphs before and after the passes that change them, word for word."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.ir import printer
from graphprune.pipeline import parse

GOLDEN = Path(__file__).parents[1] / "golden"
SELECTED = "analyze | score | allocate{ratio=0.5} | select"


class Pooled(nn.Module):
    """Channels that a view mixes with places, split and joined again: literals hold their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        left, right = torch.split(x.view(x.shape[0], 8, 4), 2, dim=2)
        return self.head(torch.cat([right, left], dim=2).reshape(x.shape[0], 32))  # type: ignore[no-any-return]


class Stream(nn.Module):
    """A residual branch behind a norm, and a norm before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = (
            nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 2, bias=False),
        )  # fmt: skip
        self.first, self.last = nn.RMSNorm(6), nn.RMSNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(torch.relu(self.up(self.first(x))))
        return self.head(self.last(x))  # type: ignore[no-any-return]


class Layers(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]


CASES = {
    "rewrite": (Pooled, (2, 3, 4, 4), SELECTED, "rewrite"),
    "fuse_norms": (Stream, (2, 3), "analyze{exact_only=false}", "fuse-norms"),
    "factorize": (Layers, (9, 8), "analyze | allocate-ranks{ratio=0.5} | calibrate{moments=none}", "factorize"),
}


@pytest.mark.parametrize("name", CASES)
def test_golden_graph(name: str) -> None:
    kind, shape, before, step = CASES[name]
    torch.manual_seed(0)
    program = gp.trace(kind().eval(), (torch.randn(shape),))
    start = given(before, program)
    after = gp.Pipeline.parse(step, tuple(start.facts))(start)
    module, (first, *rest) = kind.__name__, (kind.__doc__ or "").splitlines()
    written = (
        f"# {module}: {first}{''.join(rest)}\n# {before}\n\n{printer.text(start.graph)}\n# {step}\n\n"
        f"{printer.text(after.graph)}"
    )
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(written, encoding="utf-8")
    assert written == path.read_text(encoding="utf-8"), "if it should be so, run tools/update_goldens.py"


def given(text: str, program: gp.Program) -> gp.Program:
    """The program after the passes of a text; data are inputs like the example."""
    calls: tuple[Any, ...] = tuple((tuple(torch.randn_like(x) for x in program.inputs[0]), {}) for _ in range(3))
    return gp.Pipeline(parse(text, {"batches": calls}))(program)
