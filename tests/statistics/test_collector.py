"""Padding is no calibration data: a padded batch and the same texts without padding give the same sums."""

from typing import Any

import pytest
import torch
from torch import Tensor

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.ir.program import Program
from graphprune.passes.calibration.calibrate import Calibrate, sweep
from graphprune.passes.low_rank.allocate_ranks import AllocateRanks
from graphprune.passes.low_rank.factorize import Factorize
from graphprune.passes.reconstructions.refit import Refit
from graphprune.statistics.collector import Calibration, Collector, token_mask
from graphprune.statistics.moments import Statistics

LENGTHS = (3, 7, 5, 7, 4, 6, 3, 5, 6)


def call(ids: Tensor, mask: Tensor) -> Any:
    return (), {"input_ids": ids, "attention_mask": mask}


def alone() -> Any:
    """Every text for itself."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 60, (1, n), generator=generator) for n in LENGTHS]
    return tuple(call(row, torch.ones_like(row)) for row in rows)


def padded(rows: Any, size: int) -> Any:
    """The same, `size` texts in a batch, with zeros behind the shorter ones."""
    ids = [kwargs["input_ids"][0] for _, kwargs in rows]
    parts = [torch.nn.utils.rnn.pad_sequence(ids[i : i + size], batch_first=True) for i in range(0, len(ids), size)]
    return tuple(call(part, (part != 0).long()) for part in parts)


@pytest.fixture(scope="module")
def encoder(tiny: Any) -> Program:
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1))
    return gp.trace(tiny("bert"), (), call(ids, torch.ones_like(ids))[1])


def test_padding_is_not_counted(encoder: Program) -> None:
    found = []
    for batches in (alone(), padded(alone(), 4)):
        found.append(Calibrate(batches=batches, moments="full")(gp.Analyze()(encoder)).fact(Statistics).moments)
    assert {m.tokens for m in found[1].values()} == {sum(LENGTHS), len(LENGTHS)}  # the pooler reads one token a text
    for node, moments in found[0].items():
        assert moments.tokens == found[1][node].tokens
        torch.testing.assert_close(moments.gram, found[1][node].gram, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(moments.sums, found[1][node].sums, rtol=1e-4, atol=1e-4)


def test_inputs_of_norm_one(encoder: Program) -> None:
    program = Calibrate(batches=alone(), moments="none")(gp.Analyze()(encoder))
    consumers = program.fact(Dependencies).consumers[:4]
    collector = Collector(consumers, normalized=True)
    sweep(program, program.fact(Calibration), collector)
    for moments in collector.moments.values():
        assert moments.gram.trace() == pytest.approx(sum(LENGTHS), rel=1e-5)


@pytest.mark.parametrize("statistics", ["sequential", "mixed"])
def test_a_refit_does_not_count_it_either(encoder: Program, statistics: str) -> None:
    weights = []
    for batches in (alone(), padded(alone(), len(LENGTHS))):
        steps = gp.Analyze(), Calibrate(batches=batches), gp.Score("magnitude"), gp.Allocate(ratio=0.4), gp.Select()
        refit = Refit("affine", statistics, damping=0.1)
        weights.append(gp.Pipeline((*steps, gp.Rewrite(), refit))(encoder).weights)
    names = [name for name in weights[0] if name.endswith("dense.weight")]
    assert names
    for name in names:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-3)


def test_factors_do_not_count_it_either(encoder: Program) -> None:
    weights = []
    for batches in (alone(), padded(alone(), len(LENGTHS))):
        steps = (
            gp.Analyze(),
            AllocateRanks(ratio=0.4),
            Calibrate(batches=batches, moments="none"),
            Factorize(damping=0.1),
        )
        weights.append(gp.Pipeline(steps)(encoder).module())
    _, named = alone()[1]
    for left, right in zip(*(module(**named).values() for module in weights), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


def test_products_in_bfloat16_and_sums_in_double(encoder: Program) -> None:
    exact, rough = (
        Calibrate(batches=alone(), moments="full", autocast=on)(gp.Analyze()(encoder)).fact(Statistics).moments
        for on in (False, True)
    )
    moved = [float((rough[node].gram - found.gram).norm() / found.gram.norm()) for node, found in exact.items()]
    assert 0 < max(moved) < 0.02
    for found in rough.values():
        assert found.gram.dtype == torch.float64
        lowest = float(torch.linalg.eigvalsh(found.gram)[0] / found.gram.diagonal().sum())
        assert lowest > -1e-6  # sums of products that were rounded to bfloat16 have values far below


def test_refits_run_in_bfloat16_too(encoder: Program) -> None:
    found = []
    for on in (False, True):
        data = Calibrate(batches=alone(), autocast=on)
        plan = gp.Analyze(), data, gp.Score("magnitude"), gp.Allocate(ratio=0.4), gp.Select(), gp.Rewrite()
        small = gp.Pipeline((*plan, Refit("least-squares", damping=0.1), gp.Verify()))(encoder)
        (name,) = (name for name in small.parameters if name.endswith("layer.0.output.dense.weight"))
        found.append(small.weights[name])
    assert found[0].dtype == found[1].dtype == torch.float32
    assert 0 < float((found[1] - found[0]).norm() / found[0].norm()) < 0.02


def test_what_is_padding(encoder: Program) -> None:
    ids = torch.full((2, 3), 5)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = token_mask(encoder, encoder.flat(*call(ids, mask)))
    assert found is not None and found.tolist() == [[True, True, False], [True, True, True]]
    assert token_mask(encoder, encoder.flat(*call(ids, torch.ones_like(ids)))) is None
    plain = gp.trace(torch.nn.Linear(3, 2), (torch.randn(4, 3),))
    assert token_mask(plain, [torch.randn(4, 3)]) is None


class Branches(torch.nn.Module):
    """Layers that read one value: two wide ones and, by another, a narrow one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(8, 8), torch.nn.Linear(8, 12)
        self.narrow = torch.nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.left(x).sum(1, keepdim=True) + self.narrow(torch.relu(self.right(x)))
        return y


def test_layers_of_one_input_share_its_drift() -> None:
    torch.manual_seed(0)
    program = gp.Analyze()(gp.trace(Branches(), (torch.randn(20, 8),)))
    consumers = {c.weight: c for c in program.fact(Dependencies).consumers}
    widths = {consumers["left.weight"].x: 8, consumers["narrow.weight"].x: 12}
    shared, own = (Collector([*consumers.values()], mix=0.4, weights=program.weights) for _ in range(2))
    assert shared._aimed_by_inputs == {consumers[f"{name}.weight"].key for name in ("left", "right")}
    own.__dict__["_aimed_by_inputs"] = set()
    for _ in range(3):
        seen, others = ({x: torch.randn(20, width) for x, width in widths.items()} for _ in range(2))
        for collector in (shared, own):
            collector.add(seen, others)
    assert shared.input_drifts[consumers["left.weight"].key] is shared.input_drifts[consumers["right.weight"].key]
    for key, moments in own.moments_with_drift.items():
        expected, found = moments.drift, shared.moments_with_drift[key].drift
        assert expected is not None and found is not None
        for right, value in zip(vars(expected).values(), vars(found).values(), strict=True):
            torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-4)
