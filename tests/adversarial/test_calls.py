"""How a forward may be called, and what it may return."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

import graphprune as gp

Pair = namedtuple("Pair", "u v")
X, Y = torch.randn(4, 6), torch.randn(4, 6)


class Net(nn.Module):
    """A hidden layer of 8, and a forward of the subclass's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).relu())  # type: ignore[no-any-return]


RETURNS: dict[str, Callable[[Net, Tensor], Any]] = {
    "none": lambda s, x: (s.body(x), None),
    "numbers and text": lambda s, x: (s.body(x), 3, "text", 2.5, True),
    "nested": lambda s, x: {"a": [s.body(x), {"b": (s.body(x), None)}], "p": Pair(s.body(x), 2)},
    "a model output": lambda s, x: BaseModelOutput(s.body(x), (s.body(x), x)),
    "an ordered dict": lambda s, x: OrderedDict(z=s.body(x), a=x),
    "a size": lambda s, x: (s.body(x), x.shape[0], x.size()),
    "the same twice": lambda s, x: (y := s.body(x), y, [y]),
    "its input": lambda s, x: (x, s.body(x)),
    "a view of a parameter": lambda s, x: (s.body(x), s.c.bias[1:], s.c.weight.sum(1)),
}


@pytest.mark.parametrize("name", RETURNS)
def test_what_a_forward_returns(name: str, survives: Any) -> None:
    class Returns(Net):
        def forward(self, x: Tensor) -> Any:
            return RETURNS[name](self, x)

    found = survives(Returns(), X)
    assert (found.free, found.wider) == ("8", "")


def test_a_width_that_is_returned_or_computed_with_stays_what_it_was(survives: Any) -> None:
    class Wide(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.a(x).relu()
            return self.c(y) / y.shape[1], y.shape[1]

    found = survives(Wide(), X)
    assert found.free == "8"
    assert "padded with zeros in the module: a.weight:0" in found.wider


def test_rows_of_a_parameter_that_are_returned_stay(survives: Any) -> None:
    class Rows(Net):
        def forward(self, x: Tensor) -> Any:
            return self.body(x), self.a.weight[:2]

    assert survives(Rows(), X).free == "6"


def test_a_forward_without_tensors_holds_nothing_to_cut() -> None:
    class Nothing(Net):
        def forward(self, x: Tensor) -> None:
            return None

    assert gp.analyze(gp.trace(Nothing(), (X,))).groups == ()


class Nested(Net):
    def forward(self, d: Any) -> Tensor:
        return self.body(d["x"][0]) + self.body(d["x"][1]) + self.body(d["y"]["z"].u)


class Keywords(Net):
    def forward(self, *, x: Tensor, double: bool = False) -> Tensor:
        return self.body(x) * (2 if double else 1)


class Anything(Net):
    def forward(self, *xs: Tensor, **more: Any) -> Tensor:
        return sum(self.body(x) for x in xs) * more["scale"] + self.body(more.get("y", xs[0]))  # type: ignore[no-any-return]


class Optional(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        y = self.body(x) if mask is None else self.body(x * mask)
        return y if bias is None else y + bias


class Flags(Net):
    def forward(self, x: Tensor, times: int, flag: bool, act: str, scale: float) -> Tensor:
        for _ in range(times):
            x = x + getattr(torch, act)(x) * scale
        return self.body(x) if flag else -self.body(x)


class Alone(Net):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(5, 6))

    def forward(self) -> Tensor:
        return self.body(self.query)


class Two(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x) * self.body(y + 1)


class First(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x)


CALLS: dict[str, tuple[type[Net], tuple[Any, ...], dict[str, Any], str]] = {
    "nested": (Nested, ({"x": [X, Y], "y": {"z": Pair(X, 3)}},), {}, "8"),
    "keywords only": (Keywords, (), {"x": X, "double": True}, "8"),
    "anything": (Anything, (X, Y, X), {"scale": 2}, "8"),
    "any keyword": (Anything, (X,), {"scale": 0.5, "y": Y}, "8"),
    "an optional input left out": (Optional, (X, None), {}, "8"),
    "an optional input": (Optional, (X,), {"bias": torch.randn(3)}, "8"),
    "flags": (Flags, (X, 3, False, "relu", 1.5), {}, "8"),
    "no input": (Alone, (), {}, "6 8"),
    "one tensor twice": (Two, (X, X), {}, "8"),
    "an input that is not used": (First, (X, X), {}, "8"),
    "an input that requires grad": (Two, (X, Y.clone().requires_grad_()), {}, "8"),
}


@pytest.mark.parametrize("name", CALLS)
def test_how_a_forward_is_called(name: str, survives: Any) -> None:
    kind, args, kwargs, free = CALLS[name]
    found = survives(kind(), *args, **kwargs)
    assert (found.free, found.wider) == (free, "")


def test_a_parameter_as_input_is_an_input(survives: Any) -> None:
    module = Two()
    assert survives(module, module.a.weight, X.repeat(2, 1)).free == "8"


def test_a_forward_with_any_keywords_is_as_it_was_after_a_trace() -> None:
    module = Anything()
    gp.trace(module, (X,), {"scale": 2})
    assert "forward" not in vars(module)
    module.forward = own = lambda *xs, **more: module.body(xs[0])  # type: ignore[method-assign]
    gp.trace(module, (X,), {"scale": 2})
    assert vars(module)["forward"] is own


@pytest.mark.parametrize("name", ["nested", "anything", "one tensor twice"])
def test_the_batch_stays_dynamic_however_it_is_called(name: str) -> None:
    kind, args, kwargs, _ = CALLS[name]
    module = kind()
    program = gp.trace(module, args, kwargs)
    args, kwargs = torch.utils._pytree.tree_map_only(Tensor, lambda x: torch.cat((x, x + 1)), (args, kwargs))
    assert torch.allclose(program.module()(*args, **kwargs), module(*args, **kwargs), atol=1e-6)
