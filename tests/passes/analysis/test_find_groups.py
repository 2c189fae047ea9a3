"""The analysis: what it finds in two small models, word for word, and freedoms that it must not invent."""

import cProfile
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.execution.equivalence import verify_cut
from graphprune.execution.output_comparison import RTOL
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program
from graphprune.passes.analysis.find_groups import analyze, analyze_uncached
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.planning.index_scores import rows_of
from graphprune.planning.plan import make

GOLDEN = Path(__file__).parents[2] / "golden"


class Residual(nn.Module):
    """A convolutional network with a shortcut, a depthwise layer and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wide, self.depthwise = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.narrow, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.narrow(F.relu6(self.depthwise(F.relu6(self.wide(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def described(found: Dependencies) -> str:
    """Groups with their places, and pinned axes with their reasons, without line numbers of libraries."""
    lines = [str(found), ""]
    for group in found.groups:
        lines.append(f"{group.name}  linked to {group.linked}" if group.linked else group.name)
        lines += [f"    {place.role:20} {place.parameter}:{place.dim} = {place.axis}" for place in group.places]
        lines += [f"    not exact: {group.inexact_because.split(' File ')[0]}"] if not group.exact else []
    lines += ["", "pinned"]
    lines += [f"    {p.parameter}:{p.dim} ({p.size}) {p.reasons[0].split(' File ')[0]}" for p in found.pinned]
    return "\n".join(lines) + "\n"


def golden(name: str, found: Dependencies) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(described(found), encoding="utf-8")
    assert described(found) == path.read_text(encoding="utf-8"), "if it should be so, run tools/update_goldens.py"


def test_golden_decoder(tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]]) -> None:
    golden("llama", analyze(trace(tiny("llama", num_hidden_layers=1), (), inputs("llama"))))


def test_golden_residual() -> None:
    golden("residual", analyze(trace(Residual().eval(), (torch.randn(2, 3, 8, 8),))))


@dataclass(frozen=True)
class Case:
    """What happens between two linear maps, how many features come of it, and what must be found.

    `free` are the sizes of the groups, each with ``!`` if it is not exact and ``~`` if it is linked.
    """

    name: str
    f: Callable[["Layers", Tensor], Tensor]
    features: int | None
    free: str


class Layers(nn.Module):
    """Two linear maps side by side, a square one, and one behind `f` if it makes features."""

    def __init__(self, f: Callable[["Layers", Tensor], Tensor], features: int | None) -> None:
        super().__init__()
        self.f, self.a, self.b, self.square = f, nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 8)
        self.last = nn.Linear(features, 3) if features else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.f(self, x))  # type: ignore[no-any-return]


def heads(y: Tensor) -> Tensor:
    return y.view(*y.shape[:-1], 2, 4)


def products(y: Tensor) -> Tensor:
    return heads(y) @ heads(y).transpose(-1, -2)


def linear_attention(s: Layers, x: Tensor) -> Tensor:
    q, k = F.elu(s.a(x)) + 1, F.elu(s.b(x)) + 1
    return q @ (k.transpose(-1, -2) @ x)


CASES = [
    Case("a channel that is indexed", lambda s, x: s.a(x) * s.a(x)[:, :1], 8, "7"),
    Case("channels taken in another order", lambda s, x: s.a(x)[:, torch.arange(8).flip(0)], 8, ""),
    Case("a weight that two layers use", lambda s, x: s.square(torch.relu(s.square(s.a(x)))), 8, "8"),
    Case("an axis twice in a tensor", lambda s, x: products(s.a(x)).flatten(1), 4, "2 4"),
    Case("a product over heads", lambda s, x: (heads(s.a(x)).mT @ heads(s.b(x))).flatten(1), 16, "2 4 4"),
    Case("positive features", linear_attention, None, "8!"),
    Case("a layer norm", lambda s, x: F.layer_norm(s.a(x), (8,)), 8, "8!"),
    Case("a group norm over positions", lambda s, x: F.group_norm(s.a(x).view(-1, 4, 2), 2).flatten(1), 8, "2 2!~ 2!~"),
    Case("softmax over heads", lambda s, x: heads(s.a(x)).softmax(1).flatten(1), 8, "2! 4"),
    Case("softmax in heads", lambda s, x: heads(s.a(x)).softmax(2).flatten(1), 8, "2 4!~"),
    Case("a mean over heads", lambda s, x: heads(s.a(x)).mean(1), 4, "2! 4"),
    Case("an operator without a rule", lambda s, x: torch.renorm(s.a(x), 2, 1, 1.0), 8, ""),
    Case("running sums", lambda s, x: s.a(x).cumsum(1), 8, "8"),
    Case("batch and channel merged", lambda s, x: s.a(x).flatten().view(8, -1).T, 8, ""),
    Case("every second channel", lambda s, x: s.a(x)[:, ::2], 4, "4"),
    Case("bounds that leave out zero", lambda s, x: F.hardtanh(s.a(x), 0.5, 2).sum(1), None, "8!"),
    Case("bounds around zero", lambda s, x: F.hardtanh(s.a(x), -0.5, 2).sum(1), None, "8"),
    Case("a number added", lambda s, x: (s.a(x) + 1).sum(1), None, "8!"),
    Case("a number added and multiplied", lambda s, x: ((s.a(x) + 1) * s.b(x)).sum(1), None, "8"),
    Case("a divisor", lambda s, x: s.a(x) / s.b(x), 8, "8!"),
    Case("a divisor that is never zero", lambda s, x: s.a(x) / (s.b(x).abs() + 1), 8, "8"),
    Case("a length as divisor", lambda s, x: F.normalize(s.a(x)), 8, "8"),
    Case("the length of what is never zero", lambda s, x: F.normalize(s.a(x).sigmoid()), 8, "8!"),
    Case("a divisor that may be zero", lambda s, x: s.a(x) / (s.square(s.b(x)).relu() + x[:, :1]), 8, "8! 8"),
    Case("the power zero", lambda s, x: (s.a(x) ** 0).sum(1), None, "8!"),
    Case("padding by ones", lambda s, x: (F.pad(s.a(x)[:, 2:6], (2, 2), value=1.0) * s.b(x).cos()).sum(1), None, "2 2"),
    Case("every pair of channels", lambda s, x: (s.a(x)[:, None] * s.a(x)[:, :, None]).flatten(1), 64, "8"),
    Case("channels shuffled", lambda s, x: s.a(x).view(-1, 2, 4).mT.flatten(1), 8, "2 4"),
    Case("channels next to their copies", lambda s, x: torch.cat((s.a(x), s.a(x)), 1), 16, "8"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_no_freedom_is_invented(case: Case) -> None:
    torch.manual_seed(0)
    program = trace(Layers(case.f, case.features), (torch.randn(4, 6),))
    found = analyze(program)
    program = program.with_facts(found)
    for seed in range(5):
        prove(program, found, Random(seed))
    assert " ".join(f"{g.size}{'' if g.exact else '!'}{'~' if g.linked else ''}" for g in found.groups) == case.free


def prove(program: Program, found: Dependencies, random: Random) -> None:
    """Cut some exact groups at random, and compare with the masked original."""
    rows = {}
    for group in (g for g in found.groups if g.exact and random.random() < 0.8):
        size, count = random.randint(1, group.size), rows_of(group, found)
        rows[group.name] = tuple(tuple(sorted(random.sample(range(group.size), size))) for _ in range(count))
    plan = make(program, found, rows)
    assert verify_cut(program, rewrite(program, plan), plan.keep).max_error <= RTOL


def test_an_operator_without_a_rule_is_named() -> None:
    found = analyze(trace(Layers(lambda s, x: torch.renorm(s.a(x), 2, 1, 1.0), 8), (torch.randn(4, 6),)))
    assert found.opaque == {"aten.renorm.default": 1}
    reasons = {(p.parameter, p.dim): p.reasons[0] for p in found.pinned}
    assert reasons["a.weight", 0].startswith("aten.renorm.default has no rule, at renorm File ")
    assert "without a rule: aten.renorm.default x1" in str(found)


class Deep(nn.Module):
    """Feed-forward layers and attention written out, on a residual path, `layers` times."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        sizes = {"qkv": (6, 12), "out": (4, 6), "up": (6, 8), "down": (8, 6)}
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()}) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            layers: Any = block
            q, k, v = layers["qkv"](F.rms_norm(x, (6,))).split(4, -1)
            x = x + layers["out"](F.scaled_dot_product_attention(q, k, v) + (q @ k.mT).softmax(-1) @ v)
            x = x + layers["down"](F.gelu(layers["up"](F.layer_norm(x, (6,)))))
        return x.mean(1)


def calls(layers: int) -> dict[str, int]:
    """How many calls of functions each step takes, on a model of so many layers."""
    program = trace(Deep(layers), (torch.randn(2, 5, 6),))
    plan = gp.plan(program, ratio=0.5)
    steps: dict[str, Callable[[], object]] = {
        "analysis": lambda: analyze_uncached(program),
        "plan": lambda: gp.plan(program, ratio=0.5),
        "plan of a budget": lambda: gp.plan(program, sparsity=0.2),
        "cut": lambda: rewrite(program, plan),
    }
    return {name: counted(step) for name, step in steps.items()}


def counted(step: Callable[[], object]) -> int:
    """The calls of functions that a step makes."""
    profile = cProfile.Profile()
    profile.runcall(step)
    return sum(entry.callcount for entry in profile.getstats())


def test_a_deep_model_takes_no_more_work_a_layer() -> None:
    few, many = calls(2), calls(6)
    ratios = {name: many[name] / 6 / (few[name] / 2) for name in few}
    assert max(ratios.values()) <= 1.2, ratios
