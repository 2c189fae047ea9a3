"""Decoders in their runtimes: each reads tokens, and says what it expects to follow."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from graphprune.exporters.checks.genai_runtime import GenaiModel
from graphprune.exporters.gguf_tools.gguf_runtime import Runtime
from graphprune.exporters.onnx_tools.sessions import CUDA, OnnxRunner
from graphprune.exporters.subjects.static_decoders import Stepwise
from graphprune.exporters.subjects.subject import PAST, PRESENT, Subject, next_cache
from tools.export_benchmark.opened import Opened


class Reader(Protocol):
    """A decoder that has read the beginning of a text, at first nothing."""

    def restart(self) -> None:
        """Forget all that was read."""

    def read(self, ids: Tensor) -> Tensor:
        """Read further tokens, shape (1, n); logits of all of them, (1, n, vocabulary), or of the last, (1, 1, ...)."""


def reader_of(model: Opened, length: int) -> Reader | None:
    """The decoder in an opened folder, for texts of so many tokens; None if it is none that is fed step by step."""
    runs: Any = model.runs
    if isinstance(runs, GenaiModel):
        return Genai(runs, length)
    if isinstance(runs, Runtime):
        return Llama(runs)
    if isinstance(runs, Stepwise):
        return Parts(runs)
    if not any(name.startswith(f"{PAST}.") for name in model.names):
        return None
    if model.length is not None:
        return Window(model)
    return Bound(runs) if isinstance(runs, OnnxRunner) and runs.provider == CUDA else Cached(model)


class Cached:
    """A model that takes its cache and returns the longer one."""

    def __init__(self, model: Opened) -> None:
        self.model, self.shapes = model, _cache_shapes(model.runs)
        self.restart()

    def restart(self) -> None:
        """Begin with an empty cache."""
        self.past = {name: torch.zeros(1, heads, 0, size) for name, (heads, _, size) in self.shapes.items()}
        self.done = 0

    def read(self, ids: Tensor) -> Tensor:
        """Logits of all these tokens."""
        return self._step(step_feeds(ids, self.done))

    def _step(self, feeds: Mapping[str, Tensor]) -> Tensor:
        taken = {name: feeds[name] for name in self.model.names if name in feeds}
        outputs: dict[str, Tensor] = self.model.runs.run(taken | self.past)
        self.past, self.done = next_cache(outputs), self.done + feeds["input_ids"].shape[1]
        return outputs["logits"]


class Window(Cached):
    """A model of fixed sizes: behind places of cache, the oldest of which are masked or forgotten, some tokens."""

    def __init__(self, model: Opened) -> None:
        super().__init__(model)
        self.at_once, self.places = model.length or 1, next(iter(self.shapes.values()))[1]

    def restart(self) -> None:
        """Begin with a cache that is masked."""
        self.past, self.done = {name: torch.zeros(1, *shape) for name, shape in self.shapes.items()}, 0

    def read(self, ids: Tensor) -> Tensor:
        """Logits of all these tokens, which are as many as the model takes, or a multiple of it."""
        return torch.cat([self._part(part) for part in torch.split(ids, self.at_once, 1)], 1)

    def _part(self, ids: Tensor) -> Tensor:
        mask = torch.zeros(1, self.places + self.at_once, dtype=torch.long)
        mask[:, -min(self.done, self.places) - self.at_once :] = 1
        logits = self._step({**step_feeds(ids, self.done), "attention_mask": mask})
        self.past = {name: kept[:, :, self.at_once :] for name, kept in self.past.items()}
        return logits


class Bound:
    """A session of ONNX Runtime whose cache never leaves the device of its provider."""

    def __init__(self, runner: OnnxRunner) -> None:
        self.session, self.takes = runner.session, runner.inputs
        self.device = "cuda" if runner.provider == CUDA else "cpu"
        self.outputs = [value.name for value in runner.session.get_outputs()]
        self.shapes = _cache_shapes(runner)
        self.restart()

    def restart(self) -> None:
        """Begin with an empty cache."""
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.past = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((1, heads, 0, size), kinds[self.takes[name].type]), self.device, 0
            )
            for name, (heads, _, size) in self.shapes.items()
        }
        self.done = 0

    def read(self, ids: Tensor) -> Tensor:
        """Logits of all these tokens; they alone come back from the device."""
        binding = self.session.io_binding()
        for name, tensor in step_feeds(ids, self.done).items():
            if name in self.takes:
                binding.bind_cpu_input(name, tensor.contiguous().numpy())
        for name, value in self.past.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, "cpu" if name == "logits" else self.device)
        self.session.run_with_iobinding(binding)
        values = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        self.past = {name: values[name.replace(PAST, PRESENT, 1)] for name in self.past}
        self.done += ids.shape[1]
        return torch.from_numpy(values["logits"].numpy())


class Parts:
    """A program of fixed sizes that keeps its cache inside."""

    def __init__(self, steps: Stepwise) -> None:
        self.steps, self.done = steps, 0

    def restart(self) -> None:
        """Write from the first position again; the positions behind the current one are masked."""
        self.done = 0

    def read(self, ids: Tensor) -> Tensor:
        """Logits of all these tokens."""
        logits = self.steps.read(ids, self.done)
        self.done += ids.shape[1]
        return logits


class Llama:
    """A file in llama.cpp."""

    def __init__(self, runtime: Runtime) -> None:
        self.library = runtime.library

    def restart(self) -> None:
        """Empty the context."""
        self.library.reset()

    def read(self, ids: Tensor) -> Tensor:
        """Logits of all these tokens."""
        before = self.library.n_tokens
        self.library.eval(ids[0].tolist())
        return torch.from_numpy(np.array(self.library.scores[before : self.library.n_tokens], dtype=np.float32))[None]


class Genai:
    """A folder in onnxruntime-genai."""

    def __init__(self, writer: GenaiModel, length: int) -> None:
        self.writer, self.length = writer, length
        self.restart()

    def restart(self) -> None:
        """Begin a new text."""
        self.generator = self.writer.generator(self.length)

    def read(self, ids: Tensor) -> Tensor:
        """Logits of the last of these tokens."""
        self.generator.append_tokens(ids[0].numpy().astype(np.int32))
        return torch.from_numpy(np.array(self.generator.get_logits()))[:, -1:]


def step_feeds(ids: Tensor, done: int) -> dict[str, Tensor]:
    """The plain inputs of a step that reads `ids` after `done` tokens."""
    total = done + ids.shape[1]
    mask = torch.ones(1, total, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(done, total)[None]}


def _cache_shapes(runs: Any) -> dict[str, tuple[int, int, int]]:
    """Heads, places and the size of a head, by the inputs that hold a cache; free sizes mean nothing."""
    if isinstance(runs, OnnxRunner):
        shapes: Mapping[str, Any] = {name: value.shape for name, value in runs.inputs.items()}
    elif isinstance(runs, Subject):
        shapes = {name: leaf.shape for name, leaf in runs.example().items()}
    else:  # OpenVINO, whose free sizes are no numbers
        ports = runs.request.model_inputs
        shapes = {port.any_name: [d.get_length() if d.is_static else 0 for d in port.partial_shape] for port in ports}
    return {name: (shape[1], shape[2], shape[3]) for name, shape in shapes.items() if name.startswith(f"{PAST}.")}
