"""Every score against a direct computation, in double precision, on a small network."""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import CalibrationError, PipelineError
from graphprune.ir.program import Program
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Gradients
from graphprune.passes.scores import SCORES
from graphprune.passes.scores.comp import RIDGE
from graphprune.passes.scores.obs import Problem
from graphprune.passes.scores.prunenet import nuclear_shares
from graphprune.planning.facts import Eligible
from graphprune.planning.interfaces import Evidence
from graphprune.planning.ranking import hull
from graphprune.solvers.normal_equations import DEFAULT_DAMPING
from graphprune.statistics.attention_maps import attention_heads
from graphprune.statistics.moments import GradientSums, Statistics

HEADS, SIZE = 3, 4


class Net(nn.Module):
    """Attention over three heads, then ten neurons; `masks` multiply heads and neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 12, bias=False), nn.Linear(6, 12)
        self.o, self.up, self.down = nn.Linear(12, 6), nn.Linear(6, 10), nn.Linear(10, 3)

    def heads(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (HEADS, SIZE)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def forward(self, x: Tensor, masks: tuple[Tensor, Tensor] | None = None) -> Tensor:
        y = self.heads(x)
        y = self.o((y if masks is None else y * masks[0][:, None]).flatten(2))
        hidden = torch.sigmoid(self.up(y))
        return self.down(hidden if masks is None else hidden * masks[1])  # type: ignore[no-any-return]


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 5, 6, generator=generator).double() + 0.3 for _ in range(5)]


def loss(output: Tensor, batch: int) -> Tensor:
    return (output - 0.1 * batch).square().mean()


@pytest.fixture(scope="module")
def program() -> Program:
    calls: Any = tuple(((x,), {}) for x in batches())
    calibrate = Calibrate(batches=calls, moments="full", producers=True)
    steps = gp.Analyze(), calibrate, Gradients(loss), Gradients(loss, "outputs")
    return gp.Pipeline(steps)(gp.trace(net(), (batches()[0],)))


def group(program: Program, parameter: str, size: int) -> Group:
    """The group of this size in the columns of a weight."""
    for found in program.fact(Dependencies).groups:
        if found.size == size and any(p.parameter == parameter and "contracted" in p.role for p in found.places):
            return found
    raise AssertionError(parameter)


def evidence(program: Program) -> Evidence:
    facts = program.fact(Statistics), 0, program.fact(GradientSums)
    return Evidence(program, program.fact(Dependencies), *facts)


def score(program: Program, name: str, parameter: str, size: int) -> Tensor:
    return SCORES[name].score(group(program, parameter, size), evidence(program))


@pytest.fixture(scope="module")
def seen() -> dict[str, Tensor]:
    """The inputs of the maps, shape (tokens, features)."""
    module, x = net(), torch.cat(batches())
    with torch.no_grad():
        heads = module.heads(x).flatten(2)
        y = module.o(heads)
        hidden = torch.sigmoid(module.up(y))
    return {"x": x.flatten(0, 1), "o": heads.flatten(0, 1), "up": y.flatten(0, 1), "down": hidden.flatten(0, 1)}


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-9, atol=1e-12)


def of_heads(columns: Tensor) -> Tensor:
    return columns.view(HEADS, SIZE).mean(1)[None]


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wanda-sp": lambda w, x: w.abs().mean(0) * x.norm(dim=0),
    "flap": lambda w, x: x.var(0, correction=0) * w.square().sum(0),
    "flap-ifv": lambda w, x: x.var(0, correction=0),
    "flap-wifn": lambda w, x: w.abs().mean(0) * x.square().mean(0).sqrt(),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_columns_average_over_heads(name: str, program: Program, seen: dict[str, Tensor]) -> None:
    module = net()
    same(score(program, name, "down.weight", 10)[0], METRICS[name](module.down.weight, seen["down"]))
    same(score(program, name, "o.weight", HEADS), of_heads(METRICS[name](module.o.weight, seen["o"])))


def test_transact_measures_activations_wherever_they_are(program: Program, seen: dict[str, Tensor]) -> None:
    module = net()
    same(score(program, "transact", "down.weight", 10)[0], seen["down"].norm(dim=0))
    norms = seen["o"].norm(dim=0).view(HEADS, SIZE)
    same(score(program, "transact", "o.weight", SIZE), norms)  # each head has its own value dimensions
    same(score(program, "transact-heads", "o.weight", HEADS)[0], norms.mean(1) + 10 / SIZE * norms.amax(1))
    groups = [g for g in program.fact(Dependencies).groups if not program.fact(Dependencies).consumers_of(g)]
    (keys,) = (g for g in groups if g.size == SIZE)
    energy = module.q(seen["x"]).square().sum(0) + module.k(seen["x"]).square().sum(0)
    found = SCORES["transact"].score(keys, evidence(program))
    same(found.square(), energy.view(HEADS, SIZE) if len(found) > 1 else energy.view(HEADS, SIZE).sum(0)[None])


def damped(x: Tensor, damping: float = DEFAULT_DAMPING) -> Tensor:
    """Inputs whose second moment is the damped one."""
    ridge = damping * x.square().sum(0).mean()
    return torch.cat([x, ridge.sqrt() * torch.eye(x.shape[1]).double()])


def left(w: Tensor, x: Tensor, gone: list[int]) -> tuple[Tensor, Tensor]:
    """The squared error after the best refit without some inputs, and the refitted matrix with zeros there."""
    kept = [j for j in range(x.shape[1]) if j not in gone]
    solution = torch.linalg.lstsq(x[:, kept], x @ w.T).solution
    new = torch.zeros_like(w)
    new[:, kept] = solution.T
    return (x @ w.T - x @ new.T).square().sum(), new


def test_obs_is_the_error_after_the_best_refit(program: Program, seen: dict[str, Tensor]) -> None:
    w, x = net().down.weight.detach(), damped(seen["down"])
    same(score(program, "obs", "down.weight", 10)[0], torch.stack([left(w, x, [j])[0] for j in range(10)]))
    w, x = net().o.weight.detach(), damped(seen["o"])
    direct = [left(w, x, [head * SIZE + i for i in range(SIZE)])[0] for head in range(HEADS)]
    heads = group(program, "o.weight", HEADS)
    (consumer,) = program.fact(Dependencies).consumers_of(heads)
    same(Problem.of(consumer, heads, evidence(program)).errors()[0], torch.stack(direct))


def test_osscar_removes_greedily_and_refits_in_between(program: Program, seen: dict[str, Tensor]) -> None:
    original, x = net().down.weight.detach(), damped(seen["down"])
    order: list[int] = []
    for _ in range(10):
        costs = {j: float(left(original, x, [*order, j])[0]) for j in range(10) if j not in order}
        order.append(min(costs, key=lambda j: costs[j]))
    found = score(program, "osscar", "down.weight", 10)[0]
    assert found.argsort().tolist() == order
    neurons = group(program, "down.weight", 10)
    (consumer,) = program.fact(Dependencies).consumers_of(neurons)
    problem = Problem.of(consumer, neurons, evidence(program))
    problem.remove(torch.tensor([order[:3]]))
    problem.remove(torch.tensor([order[3:5]]))
    same(problem.weight, left(original, x, order[:5])[1])


def test_k_obs_is_the_growth_of_the_loss_after_the_best_refit(program: Program, seen: dict[str, Tensor]) -> None:
    module, gradients = net(), list[Tensor]()
    for i, batch in enumerate(batches()):
        output = module(batch)
        (gradient,) = torch.autograd.grad(loss(output, i), output)
        gradients.append(gradient.flatten(0, 1))
    g = torch.cat(gradients)
    (consumer,) = program.fact(Dependencies).consumers_of(group(program, "down.weight", 10))
    moments = g.T @ g / len(g)
    same(evidence(program).sensitivity(consumer), moments)
    weights = g.square().sum(1, keepdim=True)  # tokens count by the energy of their gradients
    x = damped(seen["down"] * (weights / weights.mean()).sqrt(), 0.1)
    moments = moments + 30 * 3 / 100 * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    w = module.down.weight.detach()

    def lost(gone: list[int]) -> float:
        change = left(w, x, gone)[1] - w  # the best refit does not depend on what the outputs are worth
        return float(((moments @ change) * (change @ (x.T @ x))).sum()) / 2

    greedy: list[int] = []
    for _ in range(10):
        greedy.append(min((j for j in range(10) if j not in greedy), key=lambda j: lost([*greedy, j])))
    found = score(program, "k-obs", "down.weight", 10)[0]
    assert found.argsort().tolist() == greedy
    growth = hull([(float(n), lost(greedy[:n])) for n in range(11)])
    assert float(found.sum()) == pytest.approx(sum(y - v for (_, v), (_, y) in pairwise(growth)), rel=1e-7)
    assert float(found[greedy[0]]) == pytest.approx(growth[1][1] / growth[1][0], rel=1e-7)
    other, given = (score(program, name, "down.weight", 10)[0] for name in ("growth-osscar", "osscar"))
    assert other.argsort().tolist() == given.argsort().tolist() != greedy
    same(other.sort().values, found.sort().values)


def test_comp_is_the_fall_of_the_condition(program: Program, seen: dict[str, Tensor]) -> None:
    x = damped(seen["down"], RIDGE)

    def condition(inputs: Tensor) -> Tensor:
        values: Tensor = torch.linalg.eigvalsh(inputs.T @ inputs)
        return (values[-1] / values[0]).log()

    falls = [condition(x) - condition(x[:, [i for i in range(10) if i != j]]) for j in range(10)]
    found = score(program, "comp", "down.weight", 10)[0]
    torch.testing.assert_close(found, torch.stack(falls), rtol=1e-6, atol=1e-7)  # small eigenvalues lose digits
    assert found.min() >= 0
    centred = seen["down"] - seen["down"].mean(0)
    x = damped(centred / len(centred) ** 0.5, RIDGE)
    shares = []
    for j in range(10):
        rest = x[:, [i for i in range(10) if i != j]]
        fit = torch.linalg.lstsq(rest, x[:, [j]]).solution
        shares.append((x[:, [j]] - rest @ fit).square().sum() / x[:, j].square().sum())
    same(score(program, "comp-inflation", "down.weight", 10)[0], torch.stack(shares))


def test_goa_is_the_second_moment_of_producer_and_consumer(program: Program, seen: dict[str, Tensor]) -> None:
    module = net()
    made = (seen["up"] @ module.up.weight.T).square().sum(0)
    same(score(program, "goa", "down.weight", 10)[0], made * module.down.weight.square().sum(0) / 2)


def test_prunenet_is_the_slope_of_the_nuclear_norm(program: Program) -> None:
    w = net().up.weight.detach()
    found = score(program, "prunenet", "down.weight", 10)[0]
    assert float(found.sum()) == pytest.approx(float(torch.linalg.matrix_norm(w, "nuc")), rel=1e-12)
    scale = torch.ones(10, 1).double().requires_grad_()
    torch.linalg.svdvals(scale * w).sum().backward()
    assert scale.grad is not None
    same(found, scale.grad[:, 0])
    wide = torch.randn(3, 7).double()
    same(nuclear_shares(wide).sum(), torch.linalg.matrix_norm(wide, "nuc"))


def test_spa_reduces_what_each_place_says(program: Program) -> None:
    module = net()
    places = [module.up.weight.abs().sum(1), module.up.bias.abs(), module.down.weight.abs().sum(0)]
    relative = torch.stack([place / place.mean() for place in places])
    direct = {"spa": relative.sum(0), "spa-mean": relative.mean(0)}
    direct |= {"spa-max": relative.amax(0), "spa-product": relative.prod(0)}
    for name, expected in direct.items():
        same(score(program, name, "down.weight", 10)[0], expected)


def slopes() -> list[dict[str, Tensor]]:
    """The gradients of every batch, by the names of parameters and masks."""
    found = []
    for i, x in enumerate(batches()):
        module = net()
        masks = torch.ones(HEADS).double().requires_grad_(), torch.ones(10).double().requires_grad_()
        loss(module(x, masks), i).backward()  # type: ignore[no-untyped-call]
        named = {name: p.grad for name, p in module.named_parameters()}
        found.append(
            {n: g for n, g in {**named, "heads": masks[0].grad, "neurons": masks[1].grad}.items() if g is not None}
        )
    return found


def test_taylor_terms_follow_the_gradients(program: Program) -> None:
    module, found = net(), slopes()
    names = ("taylor", "taylor-vector", "taylor-second", "taylor-mixed", "spa-gradient")
    direct = {name: torch.zeros(10).double() for name in names}
    for name in ("up.weight", "up.bias", "down.weight"):

        def by_neuron(t: Tensor, name: str = name) -> Tensor:
            return t.sum(0) if name == "down.weight" else t.flatten(1).sum(1) if t.dim() > 1 else t

        w = dict(module.named_parameters())[name].detach()
        g = torch.stack([s[name] for s in found]).mean(0)
        h = torch.stack([s[name] for s in found]).square().mean(0)
        direct["taylor"] += by_neuron((g * w).abs())
        direct["taylor-vector"] += by_neuron(g * w).abs()
        direct["taylor-second"] += by_neuron(w.square() * h)
        direct["taylor-mixed"] += by_neuron((g * w - w.square() * h / 2).abs())
        direct["spa-gradient"] += by_neuron((g * w).abs()) / by_neuron((g * w).abs()).mean()
    for name in names:
        same(score(program, name, "down.weight", 10)[0], direct[name])


def test_fisher_is_the_squared_slope_by_masks(program: Program) -> None:
    found = slopes()
    same(score(program, "fisher", "down.weight", 10)[0], torch.stack([s["neurons"] for s in found]).square().sum(0))
    same(score(program, "fisher", "o.weight", HEADS)[0], torch.stack([s["heads"] for s in found]).square().sum(0))


def test_heads_are_judged_whole_or_in_their_dimensions(program: Program) -> None:
    groups = program.fact(Eligible).groups
    sizes = {name: {g.size for g in SCORES[name].scored(program, groups)} for name in SCORES}
    for name in ("wanda-sp", "flap", "osscar", "k-obs", "goa", "fisher", "taylor", "transact-heads"):
        assert HEADS in sizes[name] and SIZE not in sizes[name]
    for name in ("fasp", "obs", "comp", "transact"):
        assert SIZE in sizes[name] and HEADS not in sizes[name]


def test_what_is_missing_is_said() -> None:
    x = batches()[0]
    analysed = gp.Pipeline((gp.Analyze(),))(gp.trace(net(), (x,)))
    with pytest.raises(PipelineError, match=r"^score\{by=flap\} needs Statistics, .*of these before it: calibrate$"):
        gp.Score("flap")(analysed)
    with pytest.raises(PipelineError, match=r"needs GradientSums, ParameterGradients, .*before it: gradients$"):
        gp.Score("taylor")(analysed)
    calibrated = Calibrate(batches=(((x,), {}),), moments="none")(analysed)
    with pytest.raises(CalibrationError, match="no causal language model.*pass loss"):
        Gradients()(calibrated)
    with pytest.raises(CalibrationError, match=r"the gradient of .* holds NaN"):
        Gradients(lambda output, batch: output.sum() * float("nan"))(calibrated)
    with pytest.raises(CalibrationError, match=r"the gradient at .* holds NaN"):
        Gradients(lambda output, batch: output.sum() * float("nan"), "outputs")(calibrated)
    with pytest.raises(PipelineError, match=r"needs OutputGradients, .*before it: gradients\{of=outputs\}$"):
        gp.Score("k-obs")(Gradients(loss)(Calibrate(batches=(((x,), {}),), moments="full")(analysed)))
    with pytest.raises(CalibrationError, match="no gradients of 'inputs'; did you mean outputs"):
        Gradients(loss, "inputs")(calibrated)
    with pytest.raises(CalibrationError, match="no gradients of 'maps'; choose one of parameters, outputs, layers"):
        Gradients(loss, "maps")(calibrated)


def test_goa_heads_compares_attention_maps(program: Program) -> None:
    """By hand: the divergence of each two heads, and which of the nearest two goes first."""
    module, x = net(), torch.cat(batches()[:4])
    with torch.no_grad():
        q, k = (f(x).unflatten(2, (HEADS, SIZE)).transpose(1, 2) for f in (module.q, module.k))
        p = (q @ k.transpose(2, 3) / SIZE**0.5).softmax(3)

    def against(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    expected = torch.zeros(HEADS, HEADS, dtype=torch.float64)
    for i, j in product(range(HEADS), range(HEADS)):
        middle = (p[:, i] + p[:, j]) / 2
        expected[i, j] = (against(p[:, i], middle) + against(p[:, j], middle)).mean() / 2
    (found,) = attention_heads(program).values()
    same(found.divergence, expected)
    moment = score(program, "goa", "o.weight", HEADS)[0]
    pair = min(((i, j) for i in range(HEADS) for j in range(i)), key=lambda ij: float(expected[ij]))
    first = min(pair, key=lambda i: float(moment[i]))
    got = score(program, "goa-heads", "o.weight", HEADS)[0]
    assert int(got.argmin()) == first and sorted(got.tolist()) == [0, 1, 2]
    same(score(program, "goa-heads", "down.weight", 10), score(program, "goa", "down.weight", 10))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_attention_maps_are_the_same_fused_or_not(
    kind: str, tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]]
) -> None:
    found = []
    for attention in ("eager", "sdpa"):
        model = tiny(kind, attn_implementation=attention)
        made = gp.trace(model, (), inputs(kind))
        made = gp.Pipeline((gp.Analyze(), Calibrate(batches=(((), inputs(kind)),), moments="none")))(made)
        found.append(list(attention_heads(made).values()))
    assert len(found[0]) == len(found[1]) == 2
    for eager, fused in zip(*found, strict=True):
        assert eager.axis.size == fused.axis.size
        torch.testing.assert_close(eager.divergence, fused.divergence, rtol=1e-4, atol=1e-6)
        assert float(fused.divergence.diagonal().abs().max()) < 1e-6 < float(fused.divergence.max())
