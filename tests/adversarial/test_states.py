"""Forwards that write: into buffers, caches, activations, their inputs and attributes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

S = torch.randn(2, 5, 6)


def plain(s: Any, x: Tensor) -> Tensor:
    return s.c(s.a(x).relu())  # type: ignore[no-any-return]


def buffers(**values: Tensor) -> Callable[[Any], None]:
    def add(module: nn.Module) -> None:
        for name, value in values.items():
            module.register_buffer(name, value)

    return add


def counts(s: Any, x: Tensor) -> Tensor:
    s.n += 1
    return plain(s, x) * s.n  # type: ignore[no-any-return]


def averages(s: Any, x: Tensor) -> Tensor:
    y = s.a(x).relu()
    s.m.mul_(0.9).add_(y.mean(0), alpha=0.1)
    return s.c(y - s.m)  # type: ignore[no-any-return]


def assigns(s: Any, x: Tensor) -> Tensor:
    y = s.a(x).sigmoid()
    s.m = s.m * 0.9 + y.mean(0)
    return s.c(y * s.m)  # type: ignore[no-any-return]


def sums_what_it_kept(s: Any, x: Tensor) -> Tensor:
    y = s.a(x).sigmoid()
    out = s.c(y) + (y * s.m).sum(1, keepdim=True)
    s.m.copy_(y.mean(0))
    return out  # type: ignore[no-any-return]


def fills_a_row(s: Any, x: Tensor) -> Tensor:
    s.m[:, 3] = s.a(x).relu()
    return s.c(s.m.sum(1))  # type: ignore[no-any-return]


def fills_a_prefix(s: Any, x: Tensor) -> Tensor:
    s.m[:, :5].copy_(s.a(x))
    return s.c(s.m)  # type: ignore[no-any-return]


def only_writes(s: Any, x: Tensor) -> Tensor:
    y = s.a(x).relu()
    s.m.copy_(y)
    return s.c(y)  # type: ignore[no-any-return]


def starts_anew(s: Any, x: Tensor) -> Tensor:
    s.m.zero_()
    s.m += s.a(x).sum(0)
    return s.c(s.m)  # type: ignore[no-any-return]


def works_in_place(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    y.relu_()
    y += 1
    y.mul_(s.b(x))
    return s.c(y)  # type: ignore[no-any-return]


def writes_a_segment(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    y[:, :4] *= 2
    y[:, -2:] = 0
    return s.c(y)  # type: ignore[no-any-return]


def changes_its_input(s: Any, x: Tensor) -> Tensor:
    return plain(s, x.mul_(2))


def remembers(s: Any, x: Tensor) -> Tensor:
    s.last, s.calls = s.a(x).relu(), s.calls + 1
    return s.c(s.last)  # type: ignore[no-any-return]


STATES = {
    "a counter": (counts, buffers(n=torch.zeros((), dtype=torch.long)), "8", None),
    "a running average": (averages, buffers(m=torch.zeros(8)), "8", None),
    "an assigned buffer": (assigns, buffers(m=torch.zeros(8)), "8", None),
    "a product with what was kept": (sums_what_it_kept, buffers(m=torch.zeros(8)), "8!", None),
    "a row of a cache": (fills_a_row, buffers(m=torch.zeros(4, 10, 8)), "8", None),
    "a prefix of a cache": (fills_a_prefix, buffers(m=torch.zeros(2, 10, 8)), "8", S),
    "a cache that nobody reads": (only_writes, buffers(m=torch.zeros(4, 8)), "8", None),
    "a cache that starts anew": (starts_anew, buffers(m=torch.ones(8)), "8", None),
    "activations in place": (works_in_place, None, "8", None),
    "a segment in place": (writes_a_segment, None, "4 2 2", None),
    "the input in place": (changes_its_input, None, "8", None),
    "attributes": (remembers, lambda s: setattr(s, "calls", 0), "8", None),
}


@pytest.mark.parametrize("name", STATES)
def test_what_a_forward_writes(name: str, layers: Any, survives: Any, x: Tensor) -> None:
    forward, add, free, given = STATES[name]
    module = layers(forward, add)
    found = survives(module, x if given is None else given)
    assert found.free == free
    assert not found.wider or name == "a segment in place"
    assert getattr(module, "calls", 0) == 0 and not hasattr(module, "last"), "tracing leaves no marks"
