"""Architectures that nobody wrote for us are captured, analysed, cut and proven; and the judge is just.

This is a sample; tools/benchmark_zoo.py takes all of them.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphprune.errors import TraceError
from tests import zoo
from tests.zoo.refill import refill
from tools.zoo_benchmark import ours
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.judge import Ambiguous, Inputs, NotComparable, judge, parameters
from tools.zoo_benchmark.noise import REFUSED as REFUSED_NOISE
from tools.zoo_benchmark.record import Record, Report
from tools.zoo_benchmark.subject import Subject, subject

EVERY, EVERY_SLOW = 64, 16
LONG = {  # take long
    "hf/clm/jamba", "hf/clm/zaya", "hf/depth/dpt", "hf/depth/glpn", "hf/dual/align", "hf/dual/blip",
    "hf/dual/chinese_clip", "hf/img/pvt", "hf/seg/mobilevit", "hf/seg/mobilevitv2",
}  # fmt: skip
INEXACT = "hf/img/bit"  # all its channels are normalized, and its kernels over theirs
REFUSED = "hf/clm/dbrx"  # one clear error names what cannot be done


def sample(step: int) -> list[str]:
    """The first model of each family, and from there every `step`; long ones are passed over."""
    families: dict[str, list[str]] = {}
    for name in zoo.NAMES:
        if name not in LONG:
            families.setdefault(zoo.family(name), []).append(name)
    return [name for names in families.values() for name in names[::step]]


def examine(name: str) -> Record:
    """Take a model of the zoo through the whole chain."""
    if absent := zoo.missing(name):
        pytest.skip(f"{' and '.join(absent)} not installed")
    return outcome(name, subject(name))


def outcome(name: str, known: Subject) -> Record:
    record = Record(ours.NAME, name)
    ours.run(known, Report(record, lambda _: None), Goal(ratio=0.5))
    return record


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in sample(EVERY) else [pytest.mark.slow])
        for name in sample(EVERY_SLOW)
        if name not in {INEXACT, REFUSED}
    ],
)
def test_a_cut_architecture_gives_the_numbers_of_the_masked_one(name: str) -> None:
    record = examine(name)
    assert record.exact, record.fault
    assert record.noise == REFUSED_NOISE


def test_a_module_without_exact_groups_is_cut_and_not_called_exact() -> None:
    call: Inputs = ((torch.randn(5, 6),), {})
    module = nn.Sequential(nn.Linear(6, 8), nn.Softmax(1), nn.Linear(8, 6))
    record = outcome("softmax", Subject(lambda: module, call, call, True))
    assert (record.mode, record.exact, record.written_back) == (ours.APPROXIMATE, False, True)
    assert record.removed > 0.4


@pytest.mark.slow
def test_an_architecture_without_exact_groups() -> None:
    record = examine(INEXACT)
    assert (record.mode, record.exact, record.written_back) == (ours.APPROXIMATE, False, True)
    assert record.removed > 0.5


def test_an_architecture_is_refused_with_a_reason() -> None:
    with pytest.raises(TraceError, match=r"torch\.export cannot capture .*modeling_dbrx\.py:\d+"):
        examine(REFUSED)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match=r"the zoo has no 'hf/clm/lama'; tests/zoo/names.json"):
        zoo.get("hf/clm/lama")


def test_a_model_is_always_the_same() -> None:
    build, inputs = zoo.get("hf/clm/diffllama")
    first, second = build().state_dict(), build().state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert torch.equal(inputs()[1]["input_ids"], inputs()[1]["input_ids"])
    assert not torch.equal(inputs()[1]["input_ids"], inputs(seed=1)[1]["input_ids"])
    assert inputs(batch=5)[1]["input_ids"].shape[0] == 5


def test_every_value_of_a_parameter_is_distinct() -> None:
    build, _ = zoo.get("hf/enc/bert")
    assert all(len(set(tensor.flatten().tolist())) == tensor.numel() for tensor in build().parameters())


class Pair(nn.Module):
    """Two layers, whose hidden features may be normalised, and a third that shares the weight of the first."""

    def __init__(self, normalised: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8) if normalised else nn.Identity()
        self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(torch.sigmoid(self.a(x)) + self.c(x)))  # type: ignore[no-any-return]


def pair(normalised: bool = False) -> Pair:
    torch.manual_seed(0)
    made = Pair(normalised)
    refill(made, 0)
    return made


def cut(model: Pair, rows: list[int], columns: list[int]) -> Pair:
    """Keep some hidden features."""
    weight = nn.Parameter(model.a.weight.detach()[rows])
    model.a.weight = model.c.weight = weight
    for layer in (model.a, model.c):
        layer.bias = nn.Parameter(layer.bias.detach()[rows])
    model.b.weight = nn.Parameter(model.b.weight.detach()[:, columns])
    if isinstance(model.norm, nn.LayerNorm):
        model.norm = nn.LayerNorm(len(rows))
        model.norm.load_state_dict({k: v[rows] for k, v in pair(normalised=True).norm.state_dict().items()})
    return model


def verdict_on(change: Callable[[Pair], Pair], normalised: bool = False) -> tuple[bool, str]:
    pruned = change(pair(normalised))
    found = judge(pair(normalised), parameters(pruned), pruned, ((torch.randn(5, 6),), {}))
    return found.holds, found.reason


def test_the_judge_accepts_a_right_cut() -> None:
    assert verdict_on(lambda model: cut(model, [0, 2, 5], [0, 2, 5])) == (True, "")


def test_the_judge_accepts_a_reordered_cut() -> None:
    assert verdict_on(lambda model: cut(model, [5, 0, 2], [5, 0, 2])) == (True, "")


def test_the_judge_refuses_columns_that_do_not_fit_the_rows() -> None:
    holds, reason = verdict_on(lambda model: cut(model, [0, 2, 5], [0, 2, 6]))
    assert not holds
    assert reason.startswith("differs from the masked original by")


def test_the_judge_refuses_a_cut_through_a_norm() -> None:
    assert not verdict_on(lambda model: cut(model, [0, 2, 5], [0, 2, 5]), normalised=True)[0]


def test_the_judge_refuses_another_output_shape() -> None:
    def narrow(model: Pair) -> Pair:
        model.b.weight, model.b.bias = nn.Parameter(model.b.weight[:4]), nn.Parameter(model.b.bias[:4])
        return model

    assert verdict_on(narrow) == (False, "output 0 has shape (5, 4) instead of (5, 6)")


def test_the_judge_does_not_compare_changed_values() -> None:
    def double(model: Pair) -> Pair:
        cut(model, [0, 2, 5], [0, 2, 5]).b.weight.data *= 2
        return model

    with pytest.raises(NotComparable, match=r"b\.weight: the pruned model has values that the original has not"):
        verdict_on(double)


def test_the_judge_does_not_guess_which_of_equal_values_were_kept() -> None:
    original, pruned = pair(), pair()
    nn.init.ones_(original.a.bias)
    nn.init.ones_(pruned.a.bias)
    cut(pruned, [0, 2, 5], [0, 2, 5])
    with pytest.raises(Ambiguous, match=r"a\.bias: its values are not distinct"):
        judge(original, parameters(pruned), pruned, ((torch.randn(5, 6),), {}))


def test_the_judge_takes_zeros_for_what_was_removed() -> None:
    def pad(model: Pair) -> Pair:
        gone = [1, 3, 4, 6, 7]
        for tensor in (model.a.weight, model.a.bias, model.c.bias, model.b.weight.T):
            tensor.data[gone] = 0
        return model

    assert verdict_on(pad) == (True, "")


def test_the_judge_misses_a_parameter() -> None:
    model = pair()
    kept = parameters(model)
    del kept["b.bias"]
    with pytest.raises(NotComparable, match=r"has no parameter b\.bias"):
        judge(pair(), kept, model, ((torch.randn(5, 6),), {}))
