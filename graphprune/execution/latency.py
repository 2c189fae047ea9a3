"""Latency of subgraphs in seconds, measured on the target runtime and stored in a table."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.utils.benchmark import Timer

from graphprune.errors import LoadError, PlanError, because
from graphprune.execution.module_state import quiet_exporters
from graphprune.support import json_fields
from graphprune.support.atomic_output import write_durably
from graphprune.support.packages import failed_import, load, onnxruntime

FORMAT = 1
MIN_SECONDS = 0.03  # minimum time of repeated runs of a subgraph; the fastest block of runs counts
PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}
RUNTIMES = (*PROVIDERS, "torch")

Shape = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Subgraph:
    """Separate graph of some operators with static sizes; `shapes` are those of inputs and attributes."""

    graph: fx.Graph
    shapes: Mapping[str, Shape]
    submodules: Mapping[str, Any]

    @property
    def text(self) -> str:
        """Text of everything that the latency depends on; equal subgraphs have equal texts."""
        number = {node: f"%{i}" for i, node in enumerate(self.graph.nodes)}
        lines = []
        for node in self.graph.nodes:
            args = pytree.tree_map_only(fx.Node, number.__getitem__, (node.args, node.kwargs))
            what = node.target if node.op == "call_function" else self.shapes.get(str(node.target), node.op)
            lines.append(f"{what} {args}")
        return "\n".join(lines)

    @property
    def key(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def module(self) -> tuple[fx.GraphModule, list[Tensor]]:
        """Module with random weights, and random inputs; integers are zero, a valid index."""
        values = {name: _random(*shape) for name, shape in self.shapes.items()}
        inputs = [values[str(node.target)] for node in self.graph.nodes if node.op == "placeholder"]
        return fx.GraphModule({**self.submodules, **values}, self.graph).eval(), inputs


@dataclass
class LatencyTable:
    """Latencies in seconds by the key of a subgraph, for one runtime on one machine; stored at `path` if it is set."""

    runtime: str
    machine: str
    path: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path | None, runtime: str) -> "LatencyTable":
        """Read the table in a file, or make a new one if the file is missing; without a path, use that of this process.

        Raises:
            LoadError: if the file is no table, or one of another runtime.
        """
        if not path:
            return _known.setdefault(runtime, cls(runtime, machine(runtime)))
        path = Path(path)
        if not path.exists():
            return cls(runtime, machine(runtime), path)
        try:
            data = json_fields.read(path).members(("format", "runtime", "machine", "seconds"))
            seconds = {name: item.number() for name, item in data["seconds"].entries().items()}
            table = cls(data["runtime"].text(), data["machine"].text(), path, seconds)
        except (OSError, ValueError) as fault:
            advice = "name a new file to measure again"
            raise json_fields.refused(path, "is no table of latencies", fault, advice) from fault
        made = data["format"].value
        if made != FORMAT or table.runtime != runtime:
            raise LoadError(f"{path} is a table of format {made} for {table.runtime}, not {FORMAT} for {runtime}")
        return table

    def save(self) -> None:
        """Write the file, if there is a path."""
        if self.path is not None:
            data = {"format": FORMAT, "runtime": self.runtime, "machine": self.machine, "seconds": self.seconds}
            write_durably(self.path, json.dumps(data, indent=1))

    def seconds_of(self, subgraph: Subgraph) -> float:
        """Latency of a subgraph in seconds, measured once.

        Raises:
            PlanError: if the runtime cannot run it.
        """
        if subgraph.key not in self.seconds:
            self.seconds[subgraph.key] = measure(subgraph, self.runtime)
        return self.seconds[subgraph.key]


_known: dict[str, LatencyTable] = {}


def machine(runtime: str) -> str:
    """Description of a measurement: the package and its version, the number of threads, and the processor."""
    package = {"onnxruntime": "onnxruntime", "onnxruntime-cuda": "onnxruntime-gpu", "torch": "torch"}[runtime]
    try:
        release = version(package)
    except ModuleNotFoundError:  # the packages for CPU and GPU hold the same module
        release = version("onnxruntime-gpu" if package == "onnxruntime" else "onnxruntime")
    return f"{package} {release}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"


@torch.no_grad()
def measure(subgraph: Subgraph, runtime: str) -> float:
    """Measure the latency of a subgraph in seconds: the fastest of several blocks of runs.

    Raises:
        PlanError: if the runtime cannot run it.
        PackageError: if the runtime is missing or broken.
    """
    module, inputs = subgraph.module()
    try:
        run = _in_torch(module, inputs) if runtime == "torch" else _in_onnxruntime(module, inputs, PROVIDERS[runtime])
        run()
    except Exception as fault:  # exporters and runtimes raise anything
        shown = subgraph.text.replace("\n", "; ")[:300]
        raise failed_import(fault) or PlanError(
            f"{runtime} cannot run a part of the model, so its latency is unknown{because(fault)}\n"
            f"The part: {shown}\nMeasure with another of {', '.join(RUNTIMES)}."
        ) from fault
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=MIN_SECONDS).times)


def _in_torch(module: fx.GraphModule, inputs: list[Tensor]) -> Callable[[], object]:
    return lambda: module(*inputs)


def _in_onnxruntime(module: fx.GraphModule, inputs: list[Tensor], provider: str) -> Callable[[], object]:
    """Call of an ONNX Runtime session whose inputs and outputs remain on the device."""
    load("onnxscript")
    with quiet_exporters():
        program = torch.onnx.export(module, tuple(inputs), dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} is not available")
    device = "cuda" if provider.startswith("CUDA") else "cpu"
    binding = session.io_binding()
    for argument, value in zip(session.get_inputs(), inputs, strict=True):
        binding.bind_ortvalue_input(argument.name, onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy(), device, 0))
    for argument in session.get_outputs():
        binding.bind_output(argument.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype)
    return torch.full(shape, dtype == torch.bool, dtype=dtype)
