"""Files of a run with goals: the frontier, and the quantized model where that is the smallest."""

import tempfile
from pathlib import Path

from graphprune.errors import ExportError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.onnx_tools.onnx_subjects import ONNX_FOLDER
from graphprune.workflows.goals.goal_outcome import Reached, weight_bytes

SLACK = 1.02  # of bytes in files, which hold names and the graph in addition to the weights
MORE = 1 << 20


def fill_goals(reached: Reached, folder: Path, destination: str, title: str) -> None:
    """Add the files of goals to the folder of a pruned model.

    Raises:
        ExportError: if the stored weights are larger than a goal allows.
    """
    if reached.frontier:
        reached.curve().save(folder, title)
    if reached.quant != "none":
        source = folder / ONNX_FOLDER if destination == "free" else folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / reached.quant
            EXPORTERS["onnx"].export(source, made, ExportOptions(quant=reached.quant))
            made.rename(folder / reached.quant)
        return
    limits = [goal for goal in reached.goals if goal.quantity == "size" and not goal.relative]
    stored = weight_bytes(folder)
    for goal in (goal for goal in limits if stored > goal.bound * SLACK + MORE):
        raise ExportError(
            f"the goal {goal.text!r} counts the parameters, and the files of weights in the folder have "
            f"{stored / 1e6:.1f} MB; this destination stores more than the parameters: choose another"
        )
