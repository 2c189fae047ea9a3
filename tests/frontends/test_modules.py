"""Modules are captured as they are called, and are afterwards as they were before."""

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import graphprune as gp
from graphprune.errors import InputError, TraceError


class Swallows(nn.Module):
    """Takes what it does not name as further keywords, as many language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: float = 1.0, **others: Any) -> Tensor:
        y: Tensor = self.last(torch.relu(self.first(x)))
        shift: Tensor | float = others.get("shift", 0.0)
        return y * scale + shift


def test_keywords_that_a_signature_does_not_name_have_dynamic_sizes_too() -> None:
    module = Swallows()
    program = gp.trace(module, kwargs={"x": torch.randn(4, 6), "shift": torch.randn(4, 3)})
    assert "forward" not in vars(module)
    plan = gp.plan(program, ratio=0.5)
    small = gp.apply(program, plan)
    assert gp.verify(program, small, plan).cases >= 2
    assert small.module()(x=torch.randn(7, 6), shift=torch.randn(7, 3)).shape == (7, 3)


def test_a_forward_of_the_instance_stays() -> None:
    module = Swallows()
    plain = module.forward

    def doubled(x: Tensor, **others: Any) -> Tensor:
        return plain(x, scale=2.0, **others)

    module.forward = doubled  # type: ignore[assignment, method-assign]
    gp.trace(module, kwargs={"x": torch.randn(4, 6), "shift": torch.randn(4, 3)})
    assert module.forward is doubled


class Remembers(nn.Module):
    """Keeps what it computed once, in a table and in a list, as some do in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(2, 8))
        self.known: dict[str, Tensor] = {}
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x)
        if "bias" not in self.known:
            self.known["bias"] = self.bias.sum(0)
        y: Tensor = self.last(torch.relu(self.first(x) * self.known["bias"]))
        return y


def test_what_a_module_remembers_is_not_that_of_the_capture() -> None:
    module = Remembers()
    program = gp.trace(module, (torch.randn(4, 6),))
    assert not module.known and not module.calls
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    small.write_back(module)
    assert not module.known and module(torch.randn(2, 6)).shape == (2, 3)


class Listens(Remembers):
    """Hangs a hook into a part of itself when it runs first, as some do to hand out what is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[int] = []
        self.listening = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.listening:
            self.listening = True
            self.first.register_forward_hook(lambda *_: self.heard.append(1))
        self.heard.clear()
        return super().forward(x) * len(self.heard)


def test_hooks_that_a_run_sets_are_taken_back() -> None:
    module = Listens()
    program = gp.trace(module, (torch.randn(4, 6),))
    assert not module.first._forward_hooks and not module.listening
    gp.apply(program, gp.plan(program, ratio=0.5)).write_back(module)
    assert not module.first._forward_hooks and not module.listening


class Frozen(OrderedDict[str, Any]):
    """Mapping that refuses changes through its own methods."""

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise TypeError("frozen")

    __setitem__ = __delitem__ = update = pop = clear = setdefault = _refuse


class Refusing:
    """Object whose attributes can be neither read nor set, and which compares with nothing."""

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("not now")

    __getattr__ = __setattr__ = __eq__ = __iter__ = __len__ = __bool__ = _refuse
    __hash__ = None  # type: ignore[assignment]


class Slotted:
    __slots__ = ("cache", "empty")
    empty: Tensor

    def __init__(self) -> None:
        self.cache: list[Tensor] = []


class Cache:
    """Object of the user's with a state of its own."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.recent: deque[Tensor] = deque(maxlen=2)
        self.total = torch.zeros(8)


class Stateful(Swallows):
    """Changes whatever it holds when it runs."""

    config: Any
    steps: Any

    def __init__(self) -> None:
        super().__init__()
        frozen = Frozen()
        OrderedDict.__setitem__(frozen, "width", 8)
        for name, value in {"config": frozen, "odd": Refusing(), "proxy": MappingProxyType({"a": [1]})}.items():
            object.__setattr__(self, name, value)
        self.slots, self.cache, self.calls, self.drawn = Slotted(), Cache(), [[1]], random.Random(0)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, scale: float = 1.0, **others: Any) -> Tensor:
        y = self.first(x)
        self.slots.cache.append(y)
        self.slots.empty = y
        self.calls[0].append(2)
        self.cache.seen.add(len(self.calls[0]))
        self.cache.recent.append(y)
        self.cache.latest = y  # type: ignore[attr-defined]
        self.drawn.random()
        OrderedDict.__setitem__(self.config, "more", 3)
        self.steps += 1
        return self.last(torch.relu(y))  # type: ignore[no-any-return]


def test_whatever_a_module_holds_is_restored() -> None:
    module = Stateful()
    state = module.drawn.getstate()
    gp.trace(module, (torch.randn(4, 6),))
    assert module.slots.cache == [] and not hasattr(module.slots, "empty") and module.calls == [[1]]
    assert not module.cache.seen and not module.cache.recent and not hasattr(module.cache, "latest")
    assert list(module.config) == ["width"] and type(module.config) is Frozen
    assert module.drawn.getstate() == state and int(module.steps) == 0


class Clamping(Swallows):
    """Writes to its parameters and its input."""

    def forward(self, x: Tensor, scale: float = 1.0, **others: Any) -> Tensor:
        if not torch.compiler.is_exporting():
            self.first.weight.data.clamp_(-0.1, 0.1)
        x.add_(1)
        return super().forward(x, scale)


def test_parameters_and_inputs_that_a_run_writes_to_are_restored() -> None:
    module, x = Clamping(), torch.randn(4, 6)
    with torch.no_grad():
        module.first.weight.clamp_(-0.1, 0.1)[0, 0] = 0.1
    before, given = module.first.weight.detach().clone(), x.clone()
    gp.trace(module, (x,))
    torch.testing.assert_close((module.first.weight.detach(), x), (before, given), rtol=0, atol=0)


@dataclass(frozen=True)
class Answer:
    """Result with a check in its constructor, and a field that no argument sets."""

    y: Tensor
    note: str = "all"
    more: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        assert self.y.dim() == 2


class Keyless:
    """Result that is registered without names of its parts."""

    def __init__(self, y: Tensor) -> None:
        self.y = y


pytree.register_pytree_node(
    Keyless, lambda k: ([k.y], None), lambda parts, _: Keyless(*parts), serialized_type_name="tests.Keyless"
)  # fmt: skip


class Adding(nn.Module):
    """Adds its result to the dict that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Swallows()

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["sum"] = self.net(features.pop("x"))
        return features


class Returns(Swallows):
    def __init__(self, kind: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, scale: float = 1.0, **others: Any) -> Any:
        return self.kind(super().forward(x, scale))


@pytest.mark.parametrize("kind", [Answer, Keyless])
def test_results_of_any_class_of_tensors(kind: Callable[[Tensor], Any]) -> None:
    module = Returns(kind)
    program = gp.trace(module, (torch.randn(4, 6),))
    plan = gp.plan(program, ratio=0.5)
    small = gp.apply(program, plan)
    gp.verify(program, small, plan)
    small.write_back(module)
    result = small.module()(torch.randn(3, 6))
    assert type(result) is kind and result.y.shape == (3, 3)


def test_a_dict_that_a_module_changes_is_that_of_the_caller() -> None:
    module, features = Adding(), {"x": torch.randn(4, 6), "other": 3}
    program = gp.trace(module, (features,))
    assert list(features) == ["x", "other"]
    gp.apply(program, gp.plan(program, ratio=0.5)).write_back(module)
    assert module.net.first.out_features == 4 and list(program.inputs[0][0]) == ["x", "other"]


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "both": lambda module: torch.compile(nn.DataParallel(module)),
    "recomputed": checkpoint_wrapper,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_taken_off(name: str) -> None:
    program = gp.trace(WRAPPERS[name](Swallows()), (torch.randn(4, 6),))
    assert program.parameters == {"first.weight", "first.bias", "last.weight", "last.bias"}


def test_layers_that_are_recomputed_for_gradients_are_captured() -> None:
    module: Any = nn.Sequential(checkpoint_wrapper(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    program = gp.trace(module, (torch.randn(4, 6),))
    gp.apply(program, gp.plan(program, ratio=0.5)).write_back(module)
    assert module[2].in_features == 4 and "0.weight" in module.state_dict()  # its hooks rename as before


def test_a_module_that_was_compiled_in_place_is_captured() -> None:
    module = Swallows()
    module.compile()
    call = module._compiled_call_impl
    gp.trace(nn.Sequential(module), (torch.randn(4, 6),))
    assert module._compiled_call_impl is call


class Branches(Swallows):
    """Has a branch for compilers that fails."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            raise NotImplementedError("no mask for compilers")
        return super().forward(*args, **kwargs)


def test_where_a_branch_for_compilers_fails_that_of_eager_mode_is_captured() -> None:
    module, asks = Branches().eval(), torch.compiler.is_compiling
    program = gp.trace(module, (torch.randn(4, 6),))
    assert torch.compiler.is_compiling is asks
    with torch.no_grad():
        assert torch.equal(program.module()(x := torch.randn(3, 6)), module(x))


@pytest.mark.parametrize(
    ("module", "args", "match"),
    [
        (nn.Linear, (torch.ones(2, 3),), "got the class Linear, expected an nn.Module: call the class first"),
        (torch.relu, (torch.ones(2, 3),), "expected an nn.Module: put the function into the forward of a module"),
        (nn.Linear(3, 2), torch.ones(2, 3), r"args is a Tensor .*expected a tuple and a dict: write graphprune\.trace"),
    ],
)
def test_what_a_new_user_tries_first(module: Any, args: Any, match: str) -> None:
    with pytest.raises(TraceError, match=match):
        gp.trace(module, args)


class Grows:
    """Stands for a cache of keys and values."""


GrowingCache = type("GrowingCache", (Grows,), {})


def test_a_cache_in_the_result_is_named() -> None:
    with pytest.raises(TraceError, match=r"returns its cache.*use_cache=False"):
        gp.trace(Returns(lambda y: (y, GrowingCache())), (torch.randn(4, 6),))


class Merging(nn.Linear):
    """Adds to its weight in evaluation mode, and subtracts in training mode."""

    def train(self, mode: bool = True) -> "Merging":
        if mode != self.training:
            self.weight.data += -1 if mode else 1
        return super().train(mode)


def test_modes_are_restored_by_the_methods_that_set_them() -> None:
    merging = Merging(6, 8)
    module = nn.Sequential(merging, nn.Linear(8, 3))
    before = merging.weight.detach().clone()
    with pytest.raises(TraceError, match=r"changes weights in its method train, call module\.eval\(\) before"):
        gp.trace(module, (torch.randn(4, 6),))
    torch.testing.assert_close(merging.weight.detach(), before)
    assert module.training and merging.training
    assert gp.trace(module.eval(), (torch.randn(4, 6),)).unchecked == ()


class Anchored(nn.Module):
    """Computes a table once for the size of its first call."""

    size: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.size != x.shape[0]:
            self.table, self.size = x.new_ones(x.shape[0], 8), x.shape[0]
        y: Tensor = self.layer(x) * self.table
        return y


def test_a_batch_that_is_fixed_is_named(caplog: pytest.LogCaptureFixture) -> None:
    module, x = Anchored(), torch.randn(4, 6)
    gp.trace(module, (x,))
    assert "fixed size" not in caplog.text
    module(x)
    program = gp.trace(module, (x,))
    assert "dimension 0 of input x has the fixed size 4 in the capture" in caplog.text
    with pytest.raises(InputError, match="input x has size 5 in dimension 0, expected 4"):
        program.module()(torch.randn(5, 6))
