"""Claims of operator rules hold on numbers: for the calls of all examples, and with other arguments."""

from random import Random

import pytest
import torch

from graphprune.passes.analysis.find_groups import analyze_uncached
from graphprune.passes.operators import RULES
from tests.passes.operators.calls import Call, calls, program, variants
from tests.passes.operators.claims import BrokenClaim, check

aten = torch.ops.aten


def drawn(*shape: int) -> torch.Tensor:
    """Random numbers in double precision."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


#: Calls whose arguments were claimed too much of, and kin of theirs.
HOSTILE = [
    Call(aten.einsum.default, ("bi,oi->bo", [drawn(4, 8).sigmoid(), drawn(5, 1)])),
    Call(aten.einsum.default, ("mi,ij->mj", [drawn(4, 6), drawn(6, 6)])),
    Call(aten.tensordot.default, (drawn(5, 4), drawn(3, 5), [0], [1])),
    Call(aten.tensordot.default, (drawn(5, 4), drawn(3, 1), [1], [1])),
    Call(aten.cosine_similarity.default, (drawn(4, 6), drawn(4, 6), 0)),
    Call(aten.cosine_similarity.default, (drawn(4, 6), drawn(4, 1), 1)),
    Call(aten.linalg_vector_norm.default, (drawn(4, 6), 0, [1])),
    Call(aten.complex.default, (drawn(4, 6), drawn(4, 1))),
    Call(aten._native_batch_norm_legit.no_stats, (drawn(3, 4, 5), None, None, True, 0.0, 1e-5)),
    *(
        Call(aten.scatter_reduce.two, (drawn(3, 2), 1, torch.arange(8).expand(3, 8) % 2, drawn(3, 8), reduce), kwargs)
        for reduce in ("sum", "prod", "mean", "amax", "amin")
        for kwargs in ({}, {"include_self": False})
    ),
    Call(aten.scatter.src, (drawn(3, 2), 1, torch.arange(8).expand(3, 8) % 2, drawn(3, 8))),
    Call(aten.scatter.reduce, (drawn(3, 2), 1, torch.arange(8).expand(3, 8) % 2, drawn(3, 8)), {"reduce": "multiply"}),
    Call(aten.index_add.default, (drawn(3, 2), 1, torch.arange(8) % 2, drawn(3, 8))),
    Call(aten.index_copy.default, (drawn(3, 8), 1, torch.arange(6), drawn(3, 6))),
    Call(aten.index_put.default, (drawn(3, 8), [None, torch.arange(6)], drawn(3, 6))),
    Call(aten.index_put.default, (drawn(3, 2), [None, torch.arange(6) % 2], drawn(3, 6), True)),
    Call(aten.index_put.default, (drawn(3, 2), [None, torch.arange(6) % 2], drawn(3, 1), True)),
]


def share(part: int, parts: int) -> list[Call]:
    """A part of the calls of all examples."""
    return list(calls())[part::parts]


@pytest.mark.parametrize("call", [call for call in HOSTILE if call.target in RULES], ids=str)
def test_claims_about_unusual_arguments_hold(call: Call) -> None:
    for seed in range(2):
        check(call, Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_claims_of_all_examples_hold_whatever_the_literals(part: int) -> None:
    random = Random(part)
    for call in share(part, 8):
        for other in (call, *variants(call, random, 12)):
            check(other, random, thorough=True)


def test_a_wrong_claim_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(aten.amax.default, (drawn(3, 8), [1]))
    check(call, Random(0))
    monkeypatch.setattr(type(RULES[call.target]), "reduce", lambda *_: None)
    with pytest.raises(BrokenClaim, match="amax"):
        check(call, Random(0))
    call = Call(aten.sqrt.default, (drawn(3, 8).abs(),))
    monkeypatch.setattr(type(RULES[call.target]), "scale", lambda *_: 2.0)
    with pytest.raises(BrokenClaim, match="scale"):
        check(call, Random(0))


def test_a_letter_of_size_one_is_no_zero_factor() -> None:
    summed = HOSTILE[0]
    found = analyze_uncached(program(summed, ("any", "raw"))[0])
    assert not any(group.size == 8 and group.exact for group in found.groups)
    found = analyze_uncached(program(summed, ("raw", "raw"))[0])
    assert any(group.size == 8 and group.exact for group in found.groups)
