"""Modules with hooks, parametrised weights, unusual numbers and sizes, and control flow of torch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as pruning
from torch.utils.checkpoint import checkpoint

import graphprune as gp
from graphprune.errors import LoadError, TraceError, VerificationError, WriteBackError


def plain(s: Any, x: Tensor) -> Tensor:
    return s.c(s.a(x).relu())  # type: ignore[no-any-return]


def parts(**made: Callable[[], Any]) -> Callable[[Any], None]:
    def add(module: nn.Module) -> None:
        for name, make in made.items():
            setattr(module, name, make())

    return add


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w * 2


def hooks(s: Any) -> None:
    s.a.register_forward_hook(lambda module, inputs, output: output.relu() + 1)
    s.c.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    s.register_forward_hook(lambda module, inputs, output: output * 3 + 1)
    s.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def own_forward(s: Any) -> None:
    old = s.a.forward
    s.a.forward = lambda x: old(x).tanh() * 2


def masks(s: Any) -> None:
    pruning.random_unstructured(s.a, "weight", 0.5)  # type: ignore[no-untyped-call]
    pruning.ln_structured(s.c, "weight", 0.25, 2, 1)  # type: ignore[no-untyped-call]


def old_norms(s: Any) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(s.a)
        nn.utils.weight_norm(s.c, dim=1)
    nn.utils.spectral_norm(s.b)


def new_norms(s: Any) -> None:
    parametrizations.weight_norm(s.a)
    parametrizations.weight_norm(s.c)
    parametrizations.spectral_norm(s.b)


def symmetric(s: Any) -> None:
    s.square = nn.Linear(8, 8)
    parametrize.register_parametrization(s.square, "weight", Symmetric())


def both(s: Any, x: Tensor) -> Tensor:
    return s.c(s.a(x).relu() + s.b(x))  # type: ignore[no-any-return]


CHANGED: dict[str, tuple[Any, Any, str]] = {
    "hooks": (plain, hooks, "8"),
    "a hook that selects": (lambda s, x: F.linear(s.a(x), s.c.weight[:, :4]),
                            lambda s: s.a.register_forward_hook(lambda m, i, o: o[:, :4]), "4 4 4"),
    "a forward of its own": (plain, own_forward, "8"),
    "masks": (plain, masks, "8"),
    "weight and spectral norms": (both, new_norms, "8"),
    "old weight and spectral norms": (both, old_norms, "8"),
    "one norm for all": (plain, lambda s: parametrizations.weight_norm(s.a, dim=-1), "8"),
    "orthogonal": (plain, lambda s: parametrizations.orthogonal(s.a), "?"),
    "a doubled weight": (plain, lambda s: parametrize.register_parametrization(s.a, "weight", Doubled()), "8"),
    "a symmetric weight": (lambda s, x: s.c(s.square(s.a(x))), symmetric, ""),
    "frozen": (plain, lambda s: s.a.requires_grad_(False), "8"),
    "unused": (plain, lambda s: setattr(s, "spare", nn.Linear(8, 8)), "8"),
    "compiled": (plain, lambda s: setattr(s, "a", torch.compile(s.a)), "8"),
    "odd names": (lambda s, x: s.c(getattr(s, "odd-name 1")(s.a(x))),
                  lambda s: s.register_module("odd-name 1", nn.Linear(8, 8)), "8 8"),
    "lists and dicts": (lambda s, x: (x @ s.two[0]).relu() @ s.two[1] + s.named["bias"],
                        parts(two=lambda: nn.ParameterList([torch.randn(6, 8), torch.randn(8, 3)]),
                              named=lambda: nn.ParameterDict({"bias": torch.randn(3)})), "8"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_modules_that_were_changed_from_outside(name: str, layers: Any, survives: Any, x: Tensor) -> None:
    forward, add, free = CHANGED[name]
    found = survives(layers(forward, add), x)
    assert free in ("?", found.free), found
    assert not found.wider or name == "a hook that selects"


@pytest.mark.parametrize("training", [False, True])
def test_dropout_and_norms_follow_the_mode_of_evaluation(training: bool, survives: Any, x: Tensor) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 3)
            self.batch = nn.BatchNorm1d(8, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(self.batch(self.a(x)), 0.5, self.training)
            return self.c(y) if self.training else 2 * self.c(y)  # type: ignore[no-any-return]

    assert survives(Net().train(training), x).free == "8"


def test_random_numbers_are_drawn_alike(layers: Any, survives: Any, x: Tensor) -> None:
    found = survives(layers(lambda s, x: s.c(s.b(torch.rand_like(x) + F.dropout(x, 0.5)).relu()) + plain(s, x)), x)
    assert found.free == "8 8" or found.free == "8"
    assert not found.wider


class Typed(nn.Module):
    """A network with norms and a softmax, in one type of numbers."""

    def __init__(self, *types: torch.dtype) -> None:
        super().__init__()
        first, last = types[0], types[-1]
        self.a, self.c, self.norm = nn.Linear(6, 8, dtype=first), nn.Linear(8, 3, dtype=last), nn.LayerNorm(3).to(last)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.a(x)).to(self.c.weight.dtype)
        return self.norm(self.c(y)).softmax(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "types",
    [(torch.bfloat16,), (torch.float16,), (torch.float64,), (torch.float16, torch.float64)],
    ids=lambda types: "-".join(str(t).removeprefix("torch.") for t in types),
)
def test_numbers_of_other_precision(types: tuple[torch.dtype, ...], survives: Any, x: Tensor) -> None:
    found = survives(Typed(*types), x.to(types[0]))
    assert (found.free, found.wider) == ("8", "")


def half_region(s: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = s.a(x).relu()
    return s.c(y.float())  # type: ignore[no-any-return]


def quantised(s: Any, x: Tensor) -> Tensor:
    return s.c(F.linear(x, s.q.float() * s.scale).relu())  # type: ignore[no-any-return]


def whole_numbers(s: Any) -> None:
    s.q, s.scale = nn.Parameter(torch.randint(-5, 5, (8, 6)), requires_grad=False), nn.Parameter(torch.rand(8, 1))


NUMBERS = {
    "autocast": (half_region, None, "8"),
    "quantised parameters": (quantised, whole_numbers, "8"),
    "complex parameters": (lambda s, x: s.d(s.z(x.to(torch.complex64))).abs(),
                           parts(z=lambda: nn.Linear(6, 8, dtype=torch.complex64),
                                 d=lambda: nn.Linear(8, 3, dtype=torch.complex64)), "8"),
    "a complex output": (lambda s, x: F.linear(s.a(x).to(torch.complex64), s.z),
                         lambda s: setattr(s, "z", nn.Parameter(torch.randn(3, 8, dtype=torch.complex64))), "8"),
    "real parts": (lambda s, x: s.c((s.a(x) * torch.exp(1j * s.b(x))).real), None, "?"),
    "Fourier transforms": (lambda s, x: s.c(torch.fft.irfft(torch.fft.rfft(s.a(x), dim=0), n=4, dim=0)), None, "?"),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_other_kinds_of_numbers(name: str, layers: Any, survives: Any, x: Tensor) -> None:
    forward, add, free = NUMBERS[name]
    found = survives(layers(forward, add), x)
    assert free in ("?", found.free) and not found.wider, found


def test_complex_inputs(survives: Any) -> None:
    layers = nn.Linear(6, 8, dtype=torch.complex64), nn.Linear(8, 3, dtype=torch.complex64)
    assert survives(nn.Sequential(*layers), torch.randn(4, 6, dtype=torch.complex64)).free == "8"


SIZES = {
    "no neurons": ((nn.Linear(6, 0), nn.Linear(0, 3)), (4, 6), ""),
    "one neuron": ((nn.Linear(6, 1), nn.Linear(1, 3)), (4, 6), ""),
    "one input and one output": ((nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1)), (4, 1), "8"),
    "no inputs": ((nn.Linear(0, 8), nn.Linear(8, 3)), (4, 0), "8"),
    "one row": ((nn.Linear(6, 8), nn.Linear(8, 3)), (1, 6), "8"),
    "a single vector": ((nn.Linear(6, 8), nn.Linear(8, 3)), (6,), "8"),
    "groups of one": ((nn.Conv2d(4, 4, 3, groups=4), nn.GroupNorm(4, 4), nn.GroupNorm(1, 4), nn.Conv2d(4, 4, 1)),
                      (2, 4, 8, 8), ""),
    "one group and one channel": ((nn.Conv1d(3, 1, 1), nn.GroupNorm(1, 1), nn.Conv1d(1, 8, 1), nn.Conv1d(8, 2, 1)),
                                  (2, 3, 5), "8"),
    "very deep": ((nn.Linear(6, 8), nn.Sequential(nn.Sequential(nn.Sequential(nn.ReLU()))), nn.Linear(8, 3)),
                  (4, 6), "8"),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning")
def test_sizes_of_none_and_one(name: str, survives: Any) -> None:
    parts, shape, free = SIZES[name]
    found = survives(nn.Sequential(*parts), torch.randn(shape))
    assert (found.free, found.wider) == (free, "")


@pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning")
def test_an_example_without_rows_proves_nothing() -> None:
    program = gp.trace(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), (torch.randn(0, 6),))
    plan = gp.plan(program, ratio=0.5)
    with pytest.raises(VerificationError, match="all outputs of the original are empty"):
        gp.verify(program, gp.apply(program, plan), plan)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def straight(s: Any, x: Tensor) -> Tensor:
    return s.c(Straight.apply(s.a(x)))  # type: ignore[no-any-return, no-untyped-call]


@torch.library.custom_op("hostile::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@torch.library.custom_op("hostile::grow", mutates_args=("x",))
def grow(x: Tensor) -> None:
    x.add_(1)


twice.register_fake(torch.empty_like)


def grown(s: Any, x: Tensor) -> Tensor:
    y = s.b(x)
    grow(y)
    return s.c(y)  # type: ignore[no-any-return]


def without_grad(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = s.a(x).relu()
    with torch.enable_grad():
        y = y * 2
    return s.c(y)  # type: ignore[no-any-return]


def per_sample(s: Any, x: Tensor) -> Tensor:
    return torch.vmap(lambda w, v: F.linear(F.linear(x, w).relu(), v))(s.w, s.v)


ensemble = parts(w=lambda: nn.Parameter(torch.randn(3, 8, 6)), v=lambda: nn.Parameter(torch.randn(3, 2, 8)))
FLOWS = {
    "no grad": (without_grad, None, "8", ""),
    "checkpoints": (lambda s, x: checkpoint(lambda y: plain(s, y), x, use_reentrant=False), None, "8", ""),
    "inference mode": (torch.inference_mode()(plain), None, "8", ""),
    "a branch": (lambda s, x: torch.cond(x.sum() > 0, lambda y: s.c(s.a(y)), lambda y: s.c(s.b(y)), (x,)), None, "",
                 "cond"),
    "a branch before": (lambda s, x: plain(s, torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: -y, (x,))), None, "8",
                        "cond"),
    "a function of autograd": (straight, None, "8", ""),
    "an operator of its own": (lambda s, x: s.c(twice(s.b(x))) + plain(s, x), None, "", "hostile.twice.default"),
    "a writing operator of its own": (grown, None, "", "auto_functionalized_v2"),
    "vmap": (lambda s, x: torch.vmap(lambda row: plain(s, row))(x), None, "8", ""),
    "vmap over weights": (per_sample, ensemble, "?", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_control_flow_and_operators_of_all_kinds(name: str, layers: Any, survives: Any, x: Tensor) -> None:
    forward, add, free, opaque = FLOWS[name]
    found = survives(layers(forward, add), x)
    assert free in ("?", found.free) and (found.opaque, found.wider) == (opaque, ""), found


def test_a_module_on_meta_is_analysed_and_no_more(layers: Any) -> None:
    module = layers(plain, lambda s: s.to("meta"))
    program = gp.trace(module, (torch.randn(4, 6, device="meta"),))
    assert [group.size for group in gp.analyze(program).groups] == [8]
    with pytest.raises(LoadError, match=r"^a\.\w+ is on the meta device and holds no numbers; .*load_state_dict"):
        gp.plan(program, ratio=0.5)
    with pytest.raises(TraceError, match=r"at .*: Expected all tensors .* same device.*\nPut the inputs and all"):
        gp.trace(module, (torch.randn(4, 6),))


def test_constants_that_a_forward_makes_cannot_be_narrowed_in_place(layers: Any, survives: Any, x: Tensor) -> None:
    found = survives(layers(lambda s, x: s.c(s.a(x) * torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]))), x)
    assert found.free == "8" and found.wider


def test_a_plain_tensor_as_attribute(layers: Any, survives: Any, x: Tensor) -> None:
    assert survives(layers(lambda s, x: s.c(s.a(x) * s.t), lambda s: setattr(s, "t", torch.randn(8))), x).free == "8"


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sequential(nn.Linear(6, 3)), nn.Identity()], ids=str)
def test_where_nothing_can_be_cut(module: nn.Module, x: Tensor) -> None:
    program = gp.trace(module, (x,))
    assert gp.analyze(program).groups == ()
    with pytest.raises(WriteBackError, match="nothing was cut"):
        program.write_back(module)
