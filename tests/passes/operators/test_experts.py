"""Mixtures of experts: neurons of experts are cut exactly, experts where the user asks for it, and indices followed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import PlanError
from graphprune.planning.plan import make

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("MixtralForCausalLM", {"intermediate_size": 40, "num_local_experts": 6}),
    "Qwen3Moe": (
        "Qwen3MoeForCausalLM",
        {"intermediate_size": 48, "moe_intermediate_size": 24, "num_experts": 6, "norm_topk_prob": True},
    ),
}
Captured = tuple[nn.Module, dict[str, Any], gp.Program, Dependencies]


def tiny(kind: str) -> nn.Module:
    """A routed language model of six experts, of which each token takes two."""
    torch.manual_seed(0)
    architecture, fields = KINDS[kind]
    config = getattr(transformers, f"{kind}Config")(**SIZES, **fields)
    model: nn.Module = getattr(transformers, architecture)(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


@pytest.fixture(scope="module", params=KINDS)
def routed(request: pytest.FixtureRequest) -> Captured:
    """A model, its inputs, its program, and its axes."""
    model, kwargs = tiny(request.param), {"input_ids": torch.randint(3, 60, (2, 7)), "use_cache": False}
    program = gp.Pipeline((gp.Analyze(exact_only=False),))(gp.trace(model, (), kwargs))
    return model, kwargs, program, program.fact(Dependencies)


def standing(found: Dependencies, parameter: str, dim: int) -> Group:
    """The only group in a dimension of a parameter of the first layer."""
    names = {
        g.name for g in found.groups for place in g.places
        if parameter in place.parameter and ".0." in place.parameter and place.dim == dim
    }  # fmt: skip
    assert len(names) == 1
    return found.by_name[names.pop()]


def logits(module: Callable[..., Any], kwargs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return module(**kwargs).logits  # type: ignore[no-any-return]


def test_neurons_and_experts_are_groups(routed: Captured) -> None:
    _, _, _, found = routed
    neurons, experts = standing(found, "gate_up_proj", 1), standing(found, "gate_up_proj", 0)
    assert not found.opaque
    assert neurons.exact and neurons.linked == experts.name and standing(found, "down_proj", 2) is neurons
    assert not experts.exact and not experts.rescaled and (experts.size, experts.least) == (6, 2)
    assert {place.parameter.rpartition("mlp.")[2] for place in experts.places} == {
        "gate.weight", "experts.gate_up_proj", "experts.down_proj",
    }  # fmt: skip


def test_exact_plans_leave_experts_alone(routed: Captured) -> None:
    _, kwargs, program, found = routed
    plan = gp.plan(program, ratio=0.5, recipe="magnitude", exact_only=True)
    experts, neurons = standing(found, "gate_up_proj", 0), standing(found, "gate_up_proj", 1)
    assert experts.name not in plan.groups and len(set(plan.groups[neurons.name])) > 1
    small = gp.apply(program, plan)
    assert gp.verify(program, small, plan).max_error <= 1e-4
    assert small.count() < 0.6 * program.count()
    assert torch.isfinite(logits(small.module(), kwargs)).all()


def test_the_very_experts_are_removed(routed: Captured, caplog: pytest.LogCaptureFixture) -> None:
    _, _, program, found = routed
    name = standing(found, "gate_up_proj", 0).name
    plan = gp.plan(program, drop={"model.layers.0.mlp.experts": [1, 4]})
    assert plan.groups == {name: ((0, 2, 3, 5),)}
    assert f"{name} is cut as requested, which changes the values that remain" in caplog.text
    with pytest.raises(PlanError, match="has 6 experts and can retain 2, 3, 4, 5 or 6, not 1"):
        gp.plan(program, widths={"model.layers.0.mlp.experts": 1})


def test_experts_that_are_cut_are_never_chosen(routed: Captured) -> None:
    """The same as a router that never likes them: its scores for them are hopeless."""
    model, kwargs, program, found = routed
    experts = standing(found, "gate_up_proj", 0)
    kept = (0, 2, 3, 5)
    small = gp.apply(program, make(program, found, {experts.name: (kept,)}))
    assert small.shapes()["model.layers.0.mlp.experts.down_proj"][0] == 4
    router = model.get_submodule("model.layers.0.mlp.gate")
    gone = torch.tensor([i for i in range(6) if i not in kept])
    hooks = [router.register_forward_hook(refuse(router, gone))]
    try:
        expected = logits(model, kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    got = logits(small.module(), kwargs)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (got - logits(model, kwargs)).abs().max() > 1e-3


def refuse(router: nn.Module, gone: Tensor) -> Callable[..., Any]:
    """A hook that routes anew, with the scores of some experts at minus infinity."""

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
        hidden = args[0].reshape(-1, args[0].shape[-1])
        scores = nn.functional.linear(hidden, router.weight)  # type: ignore[arg-type]
        scores[:, gone] = -torch.inf
        weights, chosen = scores.softmax(-1).topk(output[-1].shape[-1])
        return *output[:-2], weights / weights.sum(-1, keepdim=True), chosen

    return hook


def test_as_many_experts_stay_as_a_token_takes(routed: Captured) -> None:
    _, _, program, found = routed
    experts = standing(found, "gate_up_proj", 0)
    with pytest.raises(PlanError, match="at least 2, sorted"):
        make(program, found, {experts.name: ((1,),)})
    plan = gp.plan(program, ratio=0.9, recipe="random", exact_only=False)
    assert plan.widths[experts.name] == 2
    gp.verify(program, gp.apply(program, plan), plan)


@pytest.mark.slow
def test_half_precision_wants_whole_kernels() -> None:
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))  # rounding may choose another expert
    kwargs = {"input_ids": ids, "use_cache": False}
    program = gp.trace(tiny("Qwen3Moe").bfloat16(), (), kwargs)
    found = gp.analyze(program)
    neurons = standing(found, "gate_up_proj", 1)
    assert (neurons.size, neurons.unit) == (24, 8)
    with pytest.raises(PlanError, match="multiples of 8 as its width, got 20"):
        make(program, found, {neurons.name: (tuple(range(20)),)})
    plan = gp.plan(program, ratio=0.4, recipe="magnitude")
    assert plan.widths[neurons.name] in (8, 16)
    gp.verify(program, gp.apply(program, plan), plan)


@dataclass(frozen=True)
class Case:
    """What is done with the best two of four; `free` tells whether the axis may still be cut."""

    name: str
    f: Callable[["Picked", Tensor], Tensor]
    free: bool


class Picked(nn.Module):
    """Scores of four rows of a table."""

    def __init__(self, f: Callable[["Picked", Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.scores, self.table = f, nn.Linear(6, 4), nn.Parameter(torch.randn(4, 3))
        self.other = nn.Buffer(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, self.scores(x))


def best(y: Tensor) -> Tensor:
    return y.topk(2).indices


CASES = [
    Case("a row is looked up", lambda s, y: s.table[best(y)].sum(1), True),
    Case("scores are gathered", lambda s, y: y.gather(1, best(y)) * s.table[best(y)].sum(2), True),
    Case("indices are moved first", lambda s, y: s.table[best(y).flip(0).T.contiguous().view(-1).sort()[0]], True),
    Case("a mask is scattered", lambda s, y: torch.zeros_like(y).scatter(1, best(y), 1.0) @ s.table, True),
    Case("one row for each", lambda s, y: s.table[y.argmax(1)], True),
    Case("a bin for each", lambda s, y: torch.histc(best(y).float(), 4, 0, 3) @ s.table, True),
    Case("indices are added to", lambda s, y: s.table[(best(y) + 1) % 4].sum(1), False),
    Case("indices are compared", lambda s, y: (best(y) == 2) * s.table.sum(), False),
    Case("indices are returned", lambda s, y: best(y) + 0 * s.table[best(y)].sum(2).long(), False),
    Case("another number of bins", lambda s, y: torch.histc(best(y).float(), 5, 0, 4)[:4] @ s.table, False),
    Case("a table of another size", lambda s, y: torch.arange(4.0)[best(y)] * s.table[best(y)].sum(2), False),
    Case("an index is a number", lambda s, y: best(y).float() * s.table.sum(), False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_indices_are_followed(case: Case) -> None:
    torch.manual_seed(0)
    program = gp.Pipeline((gp.Analyze(exact_only=False),))(gp.trace(Picked(case.f), (torch.randn(7, 6),)))
    found = program.fact(Dependencies)
    groups = [g for g in found.groups if any(place.parameter == "scores.weight" for place in g.places)]
    assert [g.exact for g in groups] == ([False] if case.free else [])
    for group in groups:
        small = gp.apply(program, make(program, found, {group.name: ((0, 1, 3),)}))
        assert torch.isfinite(small.module()(torch.randn(7, 6)).detach()).all()
