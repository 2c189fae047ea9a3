"""New statistics of batch norms after a cut: those of what reaches each of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import CalibrationError
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program
from graphprune.passes.reconstructions.batch_norm_statistics import Norms, norms_of
from graphprune.passes.reconstructions.refit import Refit
from graphprune.passes.verification.verify import Verify
from graphprune.planning.facts import Refits


class Residual(nn.Module):
    """A norm on the input, and two in a residual branch, of which the second has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(12), nn.BatchNorm2d(8, affine=False)
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.first(x))
        x = x + self.bn2(self.b(torch.relu(self.bn1(self.a(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def module(make: Callable[[], nn.Module] = Residual) -> nn.Module:
    torch.manual_seed(0)
    made = make()
    for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return made.eval()


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(1)) + 1


def cut(made: nn.Module, batch: int = 8) -> Program:
    calls: Any = tuple(((part,), {}) for part in torch.split(images(), batch))
    steps = gp.Analyze(), gp.Calibrate(batches=calls), gp.Score("fasp"), gp.Allocate(ratio=0.5), gp.Select()
    return gp.Pipeline((*steps, gp.Rewrite()))(gp.trace(made, (images()[:2],)))


def inputs_of_norms(program: Program) -> dict[str, Tensor]:
    """What reaches every norm when all images run through the program, by the name of its mean."""
    seen: dict[str, Tensor] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            seen.update({norm.mean: value for norm in norms_of(program) if norm.x == n.name})
            return value

    with torch.no_grad():
        Watch(program.module()).run(images())
    return seen


@pytest.mark.parametrize("refit", [False, True])
def test_every_norm_has_the_statistics_of_what_reaches_it(refit: bool) -> None:
    small = cut(module())
    done = Norms()(Refit("least-squares")(small) if refit else small)
    seen = inputs_of_norms(done)
    assert set(seen) == {"first.running_mean", "bn1.running_mean", "bn2.running_mean"}
    for name, value in seen.items():
        torch.testing.assert_close(done.weights[name], value.mean((0, 2, 3)))
        variance = value.var((0, 2, 3))
        torch.testing.assert_close(done.weights[name.replace("mean", "var")], variance)
    assert {"a.weight", "b.weight"} & set(done.fact(Refits).by_weight) if refit else True
    assert Verify()(done).fact(Verification).max_error <= 1e-4


def test_batches_may_be_of_any_size_and_the_module_follows() -> None:
    made = module()
    first, second = Norms()(cut(made, 32)), Norms()(cut(made, 5))
    for name in first.fact(Refits).tuned:
        torch.testing.assert_close(first.weights[name], second.weights[name])
    first.write_back(made)
    with torch.no_grad():
        torch.testing.assert_close(made(images()), first.module()(images()))


def test_shared_statistics_stay_and_a_model_without_norms_does_too() -> None:
    norm = nn.BatchNorm2d(8)
    layers = nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 8, 1), norm, nn.Conv2d(8, 4, 1)
    done = Norms()(cut(module(lambda: nn.Sequential(*layers))))
    assert done.fact(Refits).skipped == {"1.running_mean": "several layers share it"}
    assert done.fact(Refits).tuned == ()
    plain = cut(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    assert Norms()(plain).fact(Refits).tuned == ()


def test_what_is_not_finite() -> None:
    made = module()
    small = cut(made)
    assert isinstance(made, Residual)
    made.a.weight.data[:] = torch.inf
    with pytest.raises(CalibrationError, match="hold NaN or infinity; check the model"):
        Norms()(small)
