"""Times of a dense and a pruned program, in turns, so that a busy machine slows both; and quantized programs."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import log
from pathlib import Path

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.errors import ExportError, because
from graphprune.execution.module_state import quiet_exporters
from graphprune.exporters import EXPORTERS
from graphprune.exporters.checks.generation import Decoder, open_decoder
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions
from graphprune.exporters.onnx_tools.onnx_subjects import ONNX_FOLDER
from graphprune.exporters.onnx_tools.sessions import CPU
from graphprune.ir.program import Program
from graphprune.planning.goals import Goal
from graphprune.statistics.paired import PairedSamples
from graphprune.support.packages import load, onnxruntime
from graphprune.support.workspace import current_workspace
from graphprune.workflows.goals.goal_measures import Qualities, Reading
from graphprune.workflows.goals.goal_outcome import quantized, weight_bytes
from graphprune.workflows.saved_folder import write

ROUNDS = 12  # runs of each model, in turns
PROMPT, WRITTEN = 16, 24  # tokens that a decoder reads, and writes after them
FLOAT = 4  # bytes
LEAST_SECONDS = 0.02  # of a run, which repeats short calls

Call = Callable[[], object]


@dataclass
class Timing:
    """Measurement of the timed goals of a run; the dense program is exported once."""

    dense: Program
    goals: Sequence[Goal]
    destination: str
    qualities: Qualities
    quant: str = "none"
    known: dict[str, Call] = field(default_factory=dict)

    def __call__(self, small: Program) -> dict[str, Reading]:
        """Readings of a pruned program."""
        readings = self._quantized(small) if self.quant != "none" else {}
        for key, goal in {goal.key: goal for goal in self.goals if goal.runtime}.items():
            if key not in self.known:
                self.known[key] = self._call(goal, self.dense)
            before, after = in_turns(self.known[key], self._call(goal, small))
            unit = WRITTEN if goal.quantity == "decode" else None
            readings[key] = Reading(_samples(before, unit), _samples(after, unit))
        return readings

    def _quantized(self, program: Program) -> dict[str, Reading]:
        """Size and perplexity of a quantized program, against the dense one in float."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            folder = exported(program, Path(scratch), self.destination, ExportOptions(quant=self.quant))
            decoder, size = Decoder(open_decoder(folder, CPU)), weight_bytes(folder)
            samples = self.qualities.perplexity(decoder.logits)
        before = PairedSamples.exact(self.dense.count() * FLOAT)
        readings = {"size": Reading(before, PairedSamples.exact(size)), **self.qualities.against(samples)}
        return {quantized(name, self.quant): reading for name, reading in readings.items()}

    def _call(self, goal: Goal, program: Program) -> Call:
        """Call of a program whose time a goal is about.

        Raises:
            ExportError: if the runtime cannot run it.
        """
        if goal.quantity == "decode":
            return self._decoding(program)
        return _in_torch(program) if goal.runtime == "torch" else _in_onnxruntime(program)

    def _decoding(self, program: Program) -> Call:
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            folder = exported(program, Path(scratch), self.destination)
            decoder = Decoder(open_decoder(folder, CPU))
        ids = self._prompt
        return lambda: list(decoder.tokens(ids, WRITTEN))

    @cached_property
    def _prompt(self) -> Tensor:
        if self.qualities.windows is not None:
            return self.qualities.windows[:1, :PROMPT]
        return torch.arange(3, 3 + PROMPT)[None]

    @property
    def _scratch(self) -> Path | None:
        place = current_workspace()
        if place is not None:
            place.folder.mkdir(parents=True, exist_ok=True)
        return place.folder if place is not None else None


def exported(program: Program, scratch: Path, destination: str, options: ExportOptions = NO_OPTIONS) -> Path:
    """Folder of ONNX files of a program, in `scratch`.

    Raises:
        ExportError: if it cannot be exported.
    """
    saved, output = scratch / "saved", scratch / "onnx"
    shutil.rmtree(saved, ignore_errors=True)
    saved.mkdir(parents=True)
    write(program, saved, destination)
    if destination == "free":
        if not (saved / ONNX_FOLDER).is_dir():
            raise ExportError("the graph has no ONNX files, so that ONNX Runtime cannot run it; see the log")
        if options == NO_OPTIONS:
            return saved / ONNX_FOLDER
        saved = saved / ONNX_FOLDER
    EXPORTERS["onnx"].export(saved, output, options)
    return output


def in_turns(first: Call, second: Call, rounds: int = ROUNDS) -> tuple[list[float], list[float]]:
    """Seconds of two calls, run in turns, after one that is not timed; each short call is repeated."""
    calls = first, second
    repeats = [max(1, round(LEAST_SECONDS / max(min(_seconds(call, 1) for _ in range(2)), 1e-6))) for call in calls]
    times: tuple[list[float], list[float]] = [], []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        for i in order:
            times[i].append(_seconds(calls[i], repeats[i]))
    return times


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _samples(seconds: Sequence[float], unit: int | None) -> PairedSamples:
    """Logarithms of the seconds, or of a `unit` of work a second."""
    values = (log(value) if unit is None else log(unit / value) for value in seconds)
    return PairedSamples(tuple(values), logarithms=True)


@torch.no_grad()
def _in_torch(program: Program) -> Call:
    module, (args, kwargs) = program.module(), program.inputs
    return torch.no_grad()(partial(module, *args, **kwargs))


def _in_onnxruntime(program: Program) -> Call:
    """Call of a session of ONNX Runtime on the example inputs."""
    load("onnxscript")
    args, kwargs = program.inputs
    try:
        with quiet_exporters():
            made = torch.onnx.export(program.module(), args, kwargs=dict(kwargs), dynamo=True, verbose=False)
        assert made is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        model = made.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=[CPU])
    except Exception as fault:  # exporters and runtimes raise anything
        raise ExportError(f"ONNX Runtime cannot run the model{because(fault)}; measure on torch") from fault
    tensors = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    return lambda: session.run(None, feeds)
