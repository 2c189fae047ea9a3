"""Gradients at outputs are gathered window by window, with the result of whole batches and less memory."""

from pathlib import Path

import torch

import graphprune as gp
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
