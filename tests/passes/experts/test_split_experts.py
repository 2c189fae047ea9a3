"""Dense layers become experts: equal to masked layers, exact with all experts, counted, saved and refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import CalibrationError, PlanError, WriteBackError
from graphprune.execution.output_comparison import Verification
from graphprune.frontends.modules import trace
from graphprune.ir.program import ExpertSplit, Program
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.experts.split_experts import SplitExperts
from graphprune.pipeline import Pipeline
from graphprune.planning.facts import Eligible
from graphprune.planning.plan import Plan


class Gated(nn.Module):
    """A residual layer: gated, with biases, and a scale for each neuron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(8, width), nn.Linear(8, width, bias=False)
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(width))
        self.down = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.gate(x)) * self.up(x) * self.scale)  # type: ignore[no-any-return]


class Plain(nn.Module):
    """A layer whose weights are stored the other way round, on rows of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(0.4 * torch.randn(8, 32)), nn.Parameter(0.4 * torch.randn(32, 8))
        self.before, self.after = nn.Parameter(torch.randn(32)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.addmm(self.before, x.reshape(-1, 8), self.first).view(*x.shape[:-1], 32)
        rows = nn.functional.gelu(inner).reshape(-1, 32)
        return x + torch.addmm(self.after, rows, self.second).view(*x.shape)


def network() -> Program:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 8), Gated(38), Plain(), nn.Linear(8, 3))
    return trace(layers.eval(), (torch.randn(3, 4, 5),))


def calls(count: int = 12) -> Any:
    generator = torch.Generator().manual_seed(1)
    return tuple(((torch.randn(30, 4, 5, generator=generator),), {}) for _ in range(count))


def split(program: Program, **options: Any) -> Program:
    steps = gp.Analyze(), Calibrate(batches=calls(), moments="none"), SplitExperts(**options)
    return Pipeline(steps)(program)


def outputs(program: Program) -> Tensor:
    ((x,), _), *_ = calls(1)
    with torch.no_grad():
        return program.module()(x[:3])  # type: ignore[no-any-return]


def test_all_experts_together_are_the_dense_layer() -> None:
    program = network()
    small = split(program, experts=4, active=4)
    fact = small.fact(ExpertSplit)
    assert [(s.experts, s.active, s.width) for s in fact.sizes.values()] == [(4, 4, 9), (4, 4, 8)]
    assert torch.allclose(outputs(small), outputs(program), rtol=1e-5, atol=1e-6)
    assert small.weights["1.down.weight_shared"].shape == (8, 2)  # of 38 neurons, what 4 experts of 9 leave
    rows = torch.cat([small.weights["1.up.weight_shared"], *small.weights["1.up.weight_experts"].mT])
    dense = program.weights["1.up.weight"]
    assert torch.equal(rows[rows[:, 0].argsort()], dense[dense[:, 0].argsort()]), "neurons are permuted, no more"
    routers = 2 * (4 * 8 + 4)
    assert small.count() == program.count() + routers


@pytest.mark.parametrize("active", [1, 3])
def test_a_token_takes_the_experts_with_the_highest_scores(active: int) -> None:
    torch.manual_seed(0)
    program = trace(Gated(38).eval(), (torch.randn(3, 4, 8),))
    rows = torch.randn(120, 4, 8)
    steps = gp.Analyze(), Calibrate(batches=(((rows,), {}),), moments="none"), SplitExperts(4, active)
    small = Pipeline(steps)(program)
    assert small.fact(Verification).max_error <= 1e-5
    w, x = small.weights, rows[:2].flatten(0, 1)
    shared = (x @ w["gate.weight_shared"].T + w["gate.bias_shared"]).relu() * (x @ w["up.weight_shared"].T)
    total = x + w["down.bias"] + shared * w["scale_shared"] @ w["down.weight_shared"].T
    scores = x @ w["down.weight_router"].T + w["down.weight_router_bias"]
    for token, chosen in enumerate(scores.topk(active).indices.tolist()):
        for e in chosen:
            gate = (x[token] @ w["gate.weight_experts"][e] + w["gate.bias_experts"][e]).relu()
            neurons = gate * (x[token] @ w["up.weight_experts"][e]) * w["scale_experts"][e]
            total[token] += neurons @ w["down.weight_experts"][e]
    assert torch.allclose(small.module()(rows[:2]), total.view(2, 4, 8), rtol=1e-4, atol=1e-5)


def test_saved_products_are_counted() -> None:
    program = network()
    small, tokens = split(program, experts=4, active=2), 12
    before, after = (sum(term.at({}) for term in analyze(each).terms["macs"]) for each in (program, small))
    gated, plain = 3 * 8 * (38 - 2 - 18), 2 * 8 * (32 - 16)
    routers = 2 * 4 * 8
    assert before - after == tokens * (gated + plain - routers)
    share = (gated + plain - routers) / (before / tokens)
    by_macs = split(program, experts=4, sparsity=share - 1e-6, budget="macs")
    assert {sizes.active for sizes in by_macs.fact(ExpertSplit).sizes.values()} == {2}
    more = split(program, experts=4, sparsity=share + 1e-3, budget="macs")
    assert {sizes.active for sizes in more.fact(ExpertSplit).sizes.values()} == {1}
    ratio = split(program, experts=4, ratio=0.4)  # of 38 neurons, in experts of 9, and of 32
    assert [sizes.active for sizes in ratio.fact(ExpertSplit).sizes.values()] == [2, 2]


class Planted(nn.Module):
    """Four kinds of tokens, each of which wakes four neurons of its own, in a mixed order."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)
        kinds, mixed = torch.eye(8)[:4].repeat_interleave(4, 0), torch.randperm(16)
        self.up.weight = nn.Parameter((3 * kinds + 0.02 * torch.randn(16, 8))[mixed])
        self.kinds = torch.arange(4).repeat_interleave(4)[mixed]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x) - 1.5))  # type: ignore[no-any-return]


def test_neurons_of_the_same_tokens_become_an_expert_and_its_router_finds_them() -> None:
    torch.manual_seed(0)
    module, tokens = Planted(), torch.eye(8)[torch.randint(4, (8, 64))] + 0.02 * torch.randn(8, 64, 8)
    program = trace(module, (tokens[:2],))
    data: Any = tuple(((tokens,), {}) for _ in range(2))
    steps = gp.Analyze(), Calibrate(batches=data, moments="none")
    calibrated = Pipeline(steps)(program)
    small, chance = (SplitExperts(4, 1, by=by)(calibrated) for by in ("co-activation", "random"))
    rows = small.weights["up.weight_experts"].mT  # (experts, width, hidden)
    assert sorted(expert.argmax(1).unique().tolist() for expert in rows) == [[0], [1], [2], [3]]
    errors, by_chance = (each.fact(ExpertSplit).errors["down.weight"] for each in (small, chance))
    assert errors[0] < 1e-6 and by_chance[0] > 0.1
    assert torch.allclose(small.module()(tokens[:1]), module(tokens[:1]), atol=1e-4)


def test_the_refit_lowers_the_error_of_the_outputs() -> None:
    errors = split(network(), experts=4, active=1).fact(ExpertSplit).errors
    assert errors.keys() == {"1.down.weight", "2.second"}
    assert all(after < 0.9 * before for before, after in errors.values())


def test_a_split_program_is_saved_and_loaded(tmp_path: Path) -> None:
    result = gp.prune(network(), recipe="read-me", ratio=0.4, batches=calls())
    result.save(tmp_path / "out")
    small = result.program
    assert small is not None
    assert torch.equal(outputs(gp.load(tmp_path / "out")), outputs(small))
    text = " ".join(result.report.notes)
    assert "split 2 feed-forward layers into 8 experts, of which a token takes 4" in text
    with pytest.raises(PlanError, match="the plan splits layers into experts, and a plan has none"):
        small.fact(Plan).require_cuts()
    with pytest.raises(WriteBackError, match="a module of dense layers has no router and no experts"):
        small.write_back(nn.Linear(1, 1))


def test_layers_that_cannot_be_split_are_named() -> None:
    class Chunked(nn.Module):
        """Both halves of one linear layer, as gate and value."""

        def __init__(self) -> None:
            super().__init__()
            self.both, self.down, self.rest = nn.Linear(8, 64), nn.Linear(32, 8), Gated(32)

        def forward(self, x: Tensor) -> Tensor:
            gate, value = self.both(x).chunk(2, -1)
            return self.rest(self.down(torch.relu(gate) * value))  # type: ignore[no-any-return]

    program = trace(Chunked().eval(), (torch.randn(2, 3, 8),))
    data: Any = tuple(((torch.randn(20, 3, 8),), {}) for _ in range(9))
    start = Pipeline((gp.Analyze(), Calibrate(batches=data, moments="none")))(program)
    fact = SplitExperts(4, 2)(start).fact(ExpertSplit)
    assert fact.sizes.keys() == {"rest.down.weight"}
    assert list(fact.left.values()) == [
        "its linear layers compute more than its neurons, or outputs of another number than the inputs"
    ]
    with pytest.raises(PlanError, match=r"no dense feed-forward layer that can be split .*: it is protected"):
        SplitExperts(4, 2, protect=("rest.*",))(start)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": 4, "active": 5}, "a token takes 1 to 4 of 4 experts, got active=5"),
        ({"experts": 1, "active": 1}, "at least 2 experts, got experts=1"),
        ({}, "give one of active"),
        ({"active": 2, "ratio": 0.5}, "give one of active"),
        ({"sparsity": 0.3}, r"removes no parameters: each token uses fewer of them; give macs"),
        ({"ratio": 1.5}, "a share must lie between 0 and 1"),
        ({"shared_part": 1.0, "active": 1}, "shared_part is a share of the neurons"),
        ({"active": 1, "by": "chance"}, "no way 'chance' to put neurons together"),
        ({"experts": 64, "active": 1}, "its 38 neurons are too few for 64 experts"),
        ({"experts": 4, "ratio": 0.9}, r"at most 71\.1% of the 38 neurons before 1\.down\.weight"),
        ({"experts": 4, "sparsity": 0.9, "budget": "macs"}, r"4 experts save at most 65\.1% of all multiply-acc"),
    ],
)
def test_impossible_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        split(network(), **options)


def test_what_is_missing_is_said() -> None:
    start = gp.Analyze()(network())
    eligible = start.fact(Eligible)
    stock = replace(eligible.destination, name="stock")
    with pytest.raises(PlanError, match="destination stock cannot hold experts in the place of dense layers"):
        SplitExperts(4, 2).preflight(start.with_facts(replace(eligible, destination=stock)))
    with pytest.raises(CalibrationError, match="recipe read-me needs calibration data"):
        gp.prune(network(), recipe="read-me", ratio=0.4)
    convolutions = trace(nn.Sequential(nn.Conv1d(4, 8, 1), nn.ReLU(), nn.Conv1d(8, 4, 1)), (torch.randn(2, 4, 5),))
    data: Any = (((torch.randn(2, 4, 5),), {}),)
    with pytest.raises(PlanError, match="no dense feed-forward layer that can be split into experts"):
        Pipeline((gp.Analyze(), Calibrate(batches=data, moments="none"), SplitExperts(4, 2)))(convolutions)
