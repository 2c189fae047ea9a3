"""What torch.export refuses: one message with the line of model code, torch's words, and what to do."""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import graphprune as gp
from graphprune.errors import TraceError

DECIDE = "Values of tensors must not decide what runs, nor leave torch"
CALL = "Give args and kwargs as forward takes them"
RETURN = "Return tensors, numbers, strings, None"
RUN = "See that the module runs on these very inputs in evaluation mode"


class Branch(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        if y.sum() > 0:  # here: Could not guard on data-dependent expression
            return y
        return -y


def helper(y: Tensor) -> Tensor:
    if y.max() > 0:  # here: Could not guard on data-dependent expression
        return y
    return -y


def item(y: Tensor) -> Tensor:
    count = int(y.abs().sum().item())  # here: data-dependent expression
    return y[:, :count]


def loop(y: Tensor) -> Tensor:
    while y.abs().max() > 1:  # here: Could not guard on data-dependent expression
        y = y / 2
    return y


def table(y: Tensor) -> Tensor:
    return y * {3: 1.0}[int(y.argmax())]  # here: data-dependent expression


def root(y: Tensor) -> Tensor:
    return y * math.sqrt(y.abs().sum())  # here: data-dependent expression


def array(y: Tensor) -> Tensor:
    return torch.from_numpy(y.numpy() * 2)  # here: .numpy() is not supported


def text(y: Tensor) -> Tensor:
    assert f"{y.sum():.3f}"  # here: TypeError: unsupported format string
    return y


def broken(y: Tensor) -> Tensor:
    raise ValueError("the sequence is too short. It has\nthree tokens")  # here: ValueError: the sequence is too short.


def unaligned(y: Tensor) -> Tensor:
    return y @ y  # here: must have same reduction dim


@torch.library.custom_op("hostile::shapeless", mutates_args=())
def shapeless(y: Tensor) -> Tensor:
    return y * 2


def opaque(y: Tensor) -> Tensor:
    return shapeless(y)  # type: ignore[no-any-return]  # here: There was no fake impl registered


def line_of(thing: Callable[..., Any]) -> tuple[str, str]:
    """Where the marked line of a function or class is, and what torch says there."""
    lines, start = inspect.getsourcelines(thing)
    at = next(i for i, line in enumerate(lines) if "# here:" in line)
    return f"{__file__}:{start + at} ({lines[at].strip()})", lines[at].split("# here: ")[1].strip()


class Net(nn.Module):
    def __init__(self, f: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.f = nn.Linear(6, 8), f

    def forward(self, x: Tensor) -> Any:
        return self.f(self.a(x))


@pytest.mark.parametrize(
    ("thing", "advice"),
    [(Branch, DECIDE), (helper, DECIDE), (item, DECIDE), (loop, DECIDE), (table, DECIDE), (root, DECIDE),
     (array, DECIDE), (text, DECIDE), (broken, RUN), (unaligned, RUN), (opaque, "Register a fake kernel")],
)  # fmt: skip
def test_the_innermost_line_of_model_code_is_named(
    thing: Any, advice: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    where, said = line_of(thing)
    with pytest.raises(TraceError) as caught:
        gp.trace(Net(nn.Sequential(nn.ReLU(), Branch()) if thing is Branch else thing), (torch.randn(4, 6),))
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"torch.export cannot capture Net at {where} (reason: ")
    assert said in first and len(rest) == 1 and rest[0].startswith(advice)
    assert not re.search(r"\bu\d+\b|unhinted|Size-like|\x1b", first.split(" (reason: ", 1)[1].replace(where, "")), first
    assert capfd.readouterr() == ("", ""), "torch's own report would only hide ours"


class Takes(nn.Module):
    def forward(self, x: Any, y: Any = None) -> Any:
        return x


SIGNATURES: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any], str, str]] = {
    "a set": (Takes(), ({1, 2},), {}, r"ValueError: Unsupported input type <class 'set'>", CALL),
    "an object": (Takes(), (object(),), {}, r"ValueError: Unsupported input type <class 'object'>", CALL),
    "a module": (Takes(), (nn.ReLU(), torch.ones(3)), {}, "", CALL),
    "too few": (Takes(), (), {}, "TypeError: missing a required argument: 'x'", CALL),
    "too many": (Takes(), (torch.ones(3),) * 3, {}, "TypeError: too many positional arguments", CALL),
    "unknown": (Takes(), (torch.ones(3),), {"z": 3}, "TypeError: got an unexpected keyword argument 'z'", CALL),
    "a returned object": (Net(lambda y: object()), (torch.ones(4, 6),), {}, "Found <class 'object'> in output", RETURN),
    "a lazy layer": (nn.LazyLinear(3), (torch.ones(4, 6),), {}, "uninitialized parameter", "Run the module once"),
    "a sparse parameter": (Net(lambda y: torch.sparse.mm(torch.eye(8).to_sparse(), y.t())), (torch.ones(4, 6),), {},
                           r"test_refusals\.py:\d+ \(", RUN),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.filterwarnings("ignore")
def test_inputs_and_outputs_of_unknown_kinds(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    module, args, kwargs, said, advice = SIGNATURES[name]
    with pytest.raises(TraceError, match=rf"^torch\.export cannot capture \w+.* \(reason: .*\)\n{advice}") as caught:
        gp.trace(module, args, kwargs)
    assert re.search(said, str(caught.value)), str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_what_the_model_prints_is_kept_when_nothing_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def talks(y: Tensor) -> Tensor:
        import sys

        sys.stderr.write("the model talks\n")
        return y

    gp.trace(Net(talks), (torch.randn(4, 6),))
    assert capfd.readouterr().err.count("the model talks") >= 1


def test_a_script_is_refused() -> None:
    with pytest.raises(
        TraceError, match=r"^1 is a RecursiveScriptModule, .*; expected the Python module that it was scripted from"
    ):
        gp.trace(nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(6, 3))), (torch.ones(4, 6),))


def test_a_tensor_subclass_is_traced_or_refused(survives: Any) -> None:
    class Own(torch.Tensor):
        """Behaves as any tensor does."""

    first, last = nn.Linear(6, 8), nn.Linear(8, 3)
    first.weight = nn.Parameter(first.weight.detach().as_subclass(Own))
    assert survives(nn.Sequential(first, last), torch.randn(4, 6)).free == "8"
    last.weight = nn.Parameter(TwoTensor(torch.randn(3, 8), torch.randn(3, 8)))  # type: ignore[no-untyped-call]
    with pytest.raises(TraceError, match=r"^1\.weight is a TwoTensor, which is made of several tensors; expected a p"):
        gp.trace(nn.Sequential(first, last), (torch.randn(4, 6),))
    ragged = torch.nested.nested_tensor([torch.randn(3, 6), torch.randn(2, 6)], layout=torch.jagged)
    with pytest.raises(TraceError, match=r"^input 0 is a NestedTensor, .*: gather or dequantize it first"):
        gp.trace(nn.Linear(6, 3), (ragged,))
