"""Gradients at outputs, gathered window by window or by segment, are those of whole batches, in less memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

import graphprune as gp
from graphprune.errors import CalibrationError
from graphprune.ir.program import Program
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Gradients
from graphprune.passes.calibration.loss_of_outputs import next_token_loss
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import GradientSums


def test_windows_one_by_one_have_the_gradients_of_their_batch(folder: Path, text: Path) -> None:
    calibrated = Calibrate(str(text), samples=20, length=12, moments="none")(Analyze("free")(gp.load(folder)))
    assert {len(leaves[0]) for leaves in calibrated.fact(Calibration).batches} == {2}
    apart = Gradients(of="layers", most=3)(calibrated).fact(GradientSums)
    whole = Gradients(next_token_loss(calibrated), of="layers", most=3)(calibrated).fact(GradientSums)
    assert apart.batches == whole.batches == 3 and apart.output_grams.keys() == whole.output_grams.keys() != set()
    for node, gram in whole.output_grams.items():
        torch.testing.assert_close(apart.output_grams[node], gram, rtol=1e-4, atol=1e-6 * float(gram.abs().max()))


class Pyramid(nn.Module):
    """Layers whose values at two depths are outputs, with a third one that is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 4)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for layer in self.layers[:3]:
            last, x = x, relu(layer(x))
        return {"early": last, "late": self.layers[3](x), "given": x.detach() * 0 + 1}


@pytest.fixture(params=["decoder", "pyramid"])
def calibrated(request: pytest.FixtureRequest, folder: Path, text: Path) -> Program:
    if request.param == "decoder":
        return Calibrate(str(text), samples=20, length=12, moments="none")(Analyze("free")(gp.load(folder)))
    torch.manual_seed(0)
    program = Analyze("free")(gp.trace(Pyramid(), (torch.randn(5, 6),)))
    return Calibrate(batches=tuple(((torch.randn(5, 6),), {}) for _ in range(3)), moments="none")(program)


def of_early(output: dict[str, Tensor], i: int) -> Tensor:
    """A loss that reads one or two outputs."""
    computed = [*output.values()][:2]
    return (computed[0].square().sum() + computed[-1].sum()) * (i + 1)


@pytest.mark.parametrize("of", ["outputs", "layers"])
@pytest.mark.parametrize("loss", [None, of_early])
def test_gradients_by_segment_are_those_of_the_whole_graph(
    of: str, loss: Callable[..., Tensor] | None, calibrated: Program
) -> None:
    gather = Gradients(loss, of=of, most=3)
    whole, parts = (replace(gather, by_segment=on)(calibrated).fact(GradientSums) for on in (False, True))
    assert whole.output_grams.keys() == parts.output_grams.keys() != set()
    assert whole.input_grams.keys() == parts.input_grams.keys()
    assert whole.input_moments.keys() == parts.input_moments.keys()
    for node, gram in (*whole.output_grams.items(), *whole.input_grams.items()):
        other = parts.output_grams.get(node, parts.input_grams.get(node))
        assert float(gram.abs().max()) > 0
        torch.testing.assert_close(other, gram, rtol=1e-5, atol=1e-7 * float(gram.abs().max()))
    for key, moments in whole.input_moments.items():
        torch.testing.assert_close(parts.input_moments[key].gram, moments.gram, rtol=1e-4, atol=1e-5)
    assert (whole.batches, whole.terms, whole.own) == (parts.batches, parts.terms, parts.own)


def test_gradients_of_parameters_are_refused_by_segment() -> None:
    with pytest.raises(CalibrationError, match="not gathered by_segment; set of=outputs or of=layers"):
        Gradients(of="parameters", by_segment=True).check()
