"""Tests of write-back: modules follow a cut by their own sizes, in attributes, lists and configurations."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import graphprune as gp
from graphprune.execution.module_state import preserved_state
from graphprune.writeback.attribute_slots import Slot, slots
from graphprune.writeback.sizes.size_tracing import trace_numbers
from tests.written import Attention, Normed, X, narrow


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class FromConfig(Attention):
    """Sizes are in an object, in lists and in tables inside it."""

    def __init__(self) -> None:
        super().__init__()
        del self.head_dim
        self.config = SimpleNamespace(text=SimpleNamespace(sizes=[self.heads, self.size]), table={"size": self.size})

    def split(self, x: Tensor) -> Any:
        return x.view(*x.shape[:2], -1, self.config.text.sizes[1]).transpose(1, 2)


class Guarded:
    """A configuration whose attributes raise when they are read or set."""

    def __init__(self) -> None:
        vars(self)["size"] = 8

    def __getattribute__(self, name: str) -> Any:
        if name == "width":
            raise LookupError("width differs between layers")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("it is frozen")


class FromGuardedConfig(Attention):
    """The size is in an object that guards its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Guarded()
        vars(self.config)["width"] = 8

    def split(self, x: Tensor) -> Any:
        return x.view(*x.shape[:2], -1, self.config.size).transpose(1, 2)


class Computed(Attention):
    """Sizes are products, quotients and sums of others."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.ratio = self.size // 2, self.heads // self.groups

    def split(self, x: Tensor) -> Any:
        return x.view(*x.shape[:2], -1, 2 * self.part).transpose(1, 2)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        heads = q.shape[1]
        k, v = (y[:, :, None].expand(-1, -1, self.ratio, -1, -1).flatten(1, 2) for y in (k, v))
        y = (self.scores(q, k).softmax(-1) @ v).transpose(1, 2)
        return self.out(y.reshape(*x.shape[:2], heads * 2 * self.part))


class Fused(nn.Module):
    """One projection for queries, keys and values, split by an attribute that holds the width of all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.all_width, self.heads = 32, 4
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.scale = 8**-0.5

    def forward(self, x: Tensor) -> Any:
        parts = self.qkv(x).split(self.all_width, -1)
        q, k, v = (y.unflatten(2, (self.heads, self.all_width // self.heads)).transpose(1, 2) for y in parts)
        return self.out(((q @ k.mT * self.scale).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", [Attention, FromConfig, FromGuardedConfig, Computed, Fused])
def test_sizes_are_set_wherever_they_lie(kind: Callable[[], nn.Module]) -> None:
    module = kind()
    assert not narrow(module).multiplied


def test_a_size_of_the_configuration_of_all_layers_is_one() -> None:
    layers = nn.Sequential(FromConfig(), FromConfig())
    first: Any = layers[0]
    second: Any = layers[1]
    second.config = first.config
    narrow(layers)
    assert first.config.text.sizes == [4, 4] and first.config.table == {"size": 8}


WIDTHS = {"stage": {"all": [32, 4]}}


class FromLibrary(Fused):
    """Sizes are in a dict of a library, from which it makes other modules, too."""

    def __init__(self) -> None:
        super().__init__()
        del self.all_width, self.heads
        self.widths = WIDTHS

    def forward(self, x: Tensor) -> Any:
        width, heads = self.widths["stage"]["all"]
        parts = self.qkv(x).split(width, -1)
        q, k, v = (y.unflatten(2, (heads, width // heads)).transpose(1, 2) for y in parts)
        return self.out(((q @ k.mT * self.scale).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_dict_that_other_modules_are_made_from_is_copied() -> None:
    module = FromLibrary()
    narrow(module)
    assert module.widths["stage"]["all"] != [32, 4] and WIDTHS == {"stage": {"all": [32, 4]}}


class OwnLinear(nn.Module):
    """A custom layer that holds its sizes and checks them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight, self.gain = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Any:
        if x.shape[-1] != self.inputs:
            raise TypeError("wrong width")
        return ((x.reshape(-1, self.inputs) @ self.weight) * self.gain).view(*x.shape[:-1], self.outputs)


class Recurrent(nn.Module):
    """An LSTM between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.lstm, self.down = nn.Linear(32, 24), nn.LSTM(24, 16, batch_first=True), nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Any:
        return self.down(self.lstm(self.up(x).tanh())[0])


def test_size_attributes_of_layers_follow() -> None:
    own = nn.Sequential(OwnLinear(32, 12), nn.ReLU(), OwnLinear(12, 32))
    narrow(own)
    assert [(layer.inputs, layer.outputs) for layer in own if isinstance(layer, OwnLinear)] == [(32, 6), (6, 32)]
    image = torch.randn(2, 3, 8, 8)
    grouped = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1, groups=4),
        nn.GroupNorm(4, 16), nn.ConvTranspose2d(16, 12, 2), nn.PReLU(12), nn.Conv2d(12, 4, 1),
    )  # fmt: skip
    narrow(grouped, image)
    for layer in grouped:
        if isinstance(layer, nn.ConvTranspose2d):
            assert layer.weight.shape[:2] == (layer.in_channels, layer.out_channels // layer.groups)
        elif isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
    table = nn.Sequential(nn.Embedding(20, 24), nn.Linear(24, 8))
    narrow(table, torch.randint(0, 20, (2, 5)))
    assert getattr(table[0], "embedding_dim") == 12 and "Embedding(20, 12)" in repr(table)  # noqa: B009
    recurrent = Recurrent()
    narrow(recurrent)
    lstm = recurrent.lstm
    assert (lstm.input_size, lstm.hidden_size) == (recurrent.up.out_features, recurrent.down.in_features)


class Counter(nn.Module):
    """Counts its forwards in a buffer, and stores the last width."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        assert isinstance(self.count, Tensor)
        self.count += 1
        self.last = x.shape[-1]
        return self.down(self.up(x).relu())


def test_checks_leave_no_trace() -> None:
    module = Counter()
    program = gp.trace(module.eval(), (X,))
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    module.count.fill_(7)  # type: ignore[operator]
    vars(module).pop("last", None)
    small.write_back(module)
    assert module.count == 7 and not hasattr(module, "last") and module.up.out_features == 24
    with preserved_state(module):
        module(X)
        assert module.count == 8 and module.last == 32
    assert module.count == 7 and not hasattr(module, "last")


def test_hooks_still_run() -> None:
    module = Attention()
    shapes = list[Any]()
    module.v.register_forward_hook(lambda _, args, out: shapes.append(out.shape[-1]))
    module.q.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    narrow(module)
    assert shapes[-1] == module.v.out_features


def test_parametrized_weights_are_narrowed_where_they_are_stored() -> None:
    module = nn.Sequential(weight_norm(nn.Linear(32, 24)), nn.ReLU(), weight_norm(nn.Linear(24, 32)))
    narrow(module)
    first: Any = module[0]
    stored = first.parametrizations.weight
    assert (stored.original0.shape, stored.original1.shape) == ((12, 1), (12, 32))
    assert (first.weight.shape, first.out_features) == ((12, 32), 12)


class Tied(nn.Module):
    """The output layer shares the embedding matrix, and two linear layers share another one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.head = nn.Embedding(20, 32), nn.Linear(32, 24), nn.Linear(32, 20, bias=False)
        self.down, self.again = nn.Linear(24, 32), nn.Linear(24, 32)
        self.head.weight, self.again.weight = self.words.weight, self.down.weight

    def forward(self, x: Tensor) -> Any:
        y = self.up(self.words(x)).relu()
        return self.head(self.down(y) + self.again(y.tanh()))


def test_tied_parameters_stay_tied() -> None:
    module = Tied()
    narrow(module, torch.randint(0, 20, (2, 5)))
    assert module.down.weight is module.again.weight and module.head.weight is module.words.weight
    assert module.again.in_features == module.up.out_features == 12


def test_half_precision_stays_half_precision() -> None:
    module = nn.Sequential(Normed(), nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32)).to(torch.bfloat16).eval()
    x = X.to(torch.bfloat16)
    program = gp.trace(module, (x,))
    result = gp.apply(program, gp.plan(program, ratio=0.5)).write_back(module)
    assert list(result.padded) == ["*.v.weight:0.1"]
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16} and module[1].out_features == 24


def test_a_traced_run_gives_the_slot_of_every_number() -> None:
    module = Computed().eval()
    uses = trace_numbers(module, slots(module), (X,), {}).uses
    slots_of = [(use.value, sorted(map(str, use.provenance.slots))) for use in uses if use.provenance]
    assert (8, ["Computed.part"]) in slots_of and (2, ["Computed.ratio"]) in slots_of
    assert type(module.part) is int and module.part == 4


def test_slots_lie_in_attributes_lists_and_objects() -> None:
    values = {str(slot): slot.value for slot in slots(FromConfig())}
    expected = {"SimpleNamespace.sizes[1]": 8, "SimpleNamespace.size": 8, "Linear.in_features": 32}
    assert values.items() >= expected.items()
    assert isinstance(next(iter(slots(FromConfig()))), Slot)
