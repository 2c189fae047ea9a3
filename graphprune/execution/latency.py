"""Seconds that pieces of a graph take, measured on the runtime where the model shall run, and kept in a table."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.errors import LoadError, PlanError, because, misread
from graphprune.execution.module_state import quiet_exporters
from graphprune.support.atomic_output import write_durably
from graphprune.support.packages import failed_import, load, onnxruntime

FORMAT = 1
MIN_SECONDS = 0.03  # seconds for which a piece is run again and again; the fastest run counts
PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}
RUNTIMES = (*PROVIDERS, "torch")

Shape = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Subgraph:
    """Some operators as a graph of their own, all sizes being numbers; `shapes` are those of inputs and attributes."""

    graph: fx.Graph
    shapes: Mapping[str, Shape]
    submodules: Mapping[str, Any]

    @property
    def text(self) -> str:
        """All that its time depends on: equal pieces have equal texts."""
        number = {node: f"%{i}" for i, node in enumerate(self.graph.nodes)}
        lines = []
        for node in self.graph.nodes:
            args = pytree.tree_map_only(fx.Node, number.__getitem__, (node.args, node.kwargs))
            what = node.target if node.op == "call_function" else self.shapes.get(str(node.target), node.op)
            lines.append(f"{what} {args}")
        return "\n".join(lines)

    @property
    def key(self) -> str:
        """A hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def module(self) -> tuple[fx.GraphModule, list[Tensor]]:
        """A module with random weights, and random inputs; integers are zero, so that they index something."""
        made = {name: _random(*shape) for name, shape in self.shapes.items()}
        inputs = [made[str(node.target)] for node in self.graph.nodes if node.op == "placeholder"]
        return fx.GraphModule({**self.submodules, **made}, self.graph).eval(), inputs


@dataclass
class LatencyTable:
    """Seconds by pieces, of one runtime on one machine; written to `path` if that is given."""

    runtime: str
    machine: str
    path: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path | None, runtime: str) -> "LatencyTable":
        """The table of a file, if there is one yet; else what this process has measured on the runtime so far.

        Raises:
            LoadError: if the file is no table, or one of another runtime.
        """
        if not path:
            return _known.setdefault(runtime, cls(runtime, machine(runtime)))
        path = Path(path)
        if not path.exists():
            return cls(runtime, machine(runtime), path)
        try:
            data = json.loads(path.read_text())
            found = cls(data["runtime"], data["machine"], path, {k: float(v) for k, v in data["seconds"].items()})
            known = data["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise LoadError(
                f"{path} is no table of latencies{misread(fault)}; name another file to have one made"
            ) from fault
        if not known or found.runtime != runtime:
            raise LoadError(
                f"{path} is a table of format {data['format']} for {found.runtime}, not {FORMAT} for {runtime}"
            )
        return found

    def save(self) -> None:
        """Write the file, if there is one."""
        if self.path is not None:
            data = {"format": FORMAT, "runtime": self.runtime, "machine": self.machine, "seconds": self.seconds}
            write_durably(self.path, json.dumps(data, indent=1))

    def seconds_of(self, piece: Subgraph) -> float:
        """The seconds of a piece, measured if they are not known.

        Raises:
            PlanError: if the runtime cannot run it.
        """
        if piece.key not in self.seconds:
            self.seconds[piece.key] = measure(piece, self.runtime)
        return self.seconds[piece.key]


_known: dict[str, LatencyTable] = {}


def machine(runtime: str) -> str:
    """Where and with what is measured."""
    package = {"onnxruntime": "onnxruntime", "onnxruntime-cuda": "onnxruntime-gpu", "torch": "torch"}[runtime]
    try:
        release = version(package)
    except ModuleNotFoundError:  # the packages for CPU and GPU hold the same module
        release = version("onnxruntime-gpu" if package == "onnxruntime" else "onnxruntime")
    return f"{package} {release}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"


@torch.no_grad()
def measure(piece: Subgraph, runtime: str) -> float:
    """The seconds of the fastest of several runs of a piece.

    Raises:
        PlanError: if the runtime cannot run it.
        PackageError: if the runtime is missing or broken.
    """
    module, inputs = piece.module()
    try:
        run = _in_torch(module, inputs) if runtime == "torch" else _in_onnxruntime(module, inputs, PROVIDERS[runtime])
        run()
    except Exception as fault:  # exporters and runtimes raise what they like
        shown = piece.text.replace("\n", "; ")[:300]
        raise failed_import(fault) or PlanError(
            f"{runtime} cannot run a piece of the model, so its latency is not known{because(fault)}\n"
            f"The piece: {shown}\nMeasure with another of {', '.join(RUNTIMES)}."
        ) from fault
    best, spent = float("inf"), 0.0
    while spent < MIN_SECONDS:
        start = time.perf_counter()
        run()
        last = time.perf_counter() - start
        best, spent = min(best, last), spent + max(last, MIN_SECONDS / 1000)
    return best


def _in_torch(module: fx.GraphModule, inputs: list[Tensor]) -> Callable[[], object]:
    return lambda: module(*inputs)


def _in_onnxruntime(module: fx.GraphModule, inputs: list[Tensor], provider: str) -> Callable[[], object]:
    """A session whose inputs and outputs stay on the device."""
    load("onnxscript")
    with quiet_exporters():
        program = torch.onnx.export(module, tuple(inputs), dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"there is no {provider} here")
    device = "cuda" if provider.startswith("CUDA") else "cpu"
    binding = session.io_binding()
    for told, value in zip(session.get_inputs(), inputs, strict=True):
        binding.bind_ortvalue_input(told.name, onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy(), device, 0))
    for told in session.get_outputs():
        binding.bind_output(told.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype)
    return torch.full(shape, dtype == torch.bool, dtype=dtype)
