"""Saved models as ExecuTorch programs for XNNPACK: phones, and other processors without Python."""

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from graphprune.errors import ExportError, because
from graphprune.execution.module_state import quiet_exporters
from graphprune.exporters.checks import parity
from graphprune.exporters.checks.parity import Runnable
from graphprune.exporters.checks.validation import Reference
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, ExportTarget, Needs
from graphprune.exporters.export_folders.onnx_writer import subject_of_model
from graphprune.exporters.export_folders.package_formats import (
    Format,
    export_as,
    fixed_size,
    import_package,
    verify,
)
from graphprune.exporters.onnx_tools.program_subjects import saved_subject
from graphprune.exporters.subjects.decoders import is_decoder
from graphprune.exporters.subjects.static_decoders import StaticDecoder, Stepwise, Uncached, greedy_case, static_subject
from graphprune.exporters.subjects.subject import Subject
from graphprune.exporters.targets.pt2 import captured
from graphprune.huggingface import model_folder

FILE = "model.pte"
_FORWARD, _LENGTH = "forward", "get_max_context_len"


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the model of a Hugging Face folder as model.pte, all sizes fixed.

    A decoder keeps its cache of `past` tokens inside; it takes tokens, up to `sequence` at once, and their positions.
    ``int8`` stores the weights of linear layers in 8 bits, and rounds their inputs to 8 bits.

    Raises:
        PackageError: if ExecuTorch is missing or broken.
        ExportError: if the model cannot be exported, the file does not agree with it, or `output` may not be written.
    """
    options.require("executorch", quant=("int8",), static=("batch", "sequence", "past"))
    import_package("executorch.exir", "executorch")
    return export_as(FORMAT, source, output, options, force=force)


@dataclass(frozen=True)
class ExecutorchRunner:
    """A program in ExecuTorch's own runtime, called with inputs in order."""

    method: Any
    inputs: Sequence[str]
    outputs: Sequence[str]

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""
        try:
            values = self.method.execute([feeds[name].contiguous() for name in self.inputs])
        except RuntimeError as fault:
            raise ExportError(f"ExecuTorch failed{because(fault)}") from fault
        # The runtime gives views of memory that the next call writes to.
        return {name: tensor.clone() for name, tensor in zip(self.outputs, values, strict=True)}


def _reference(source: Path, options: ExportOptions) -> Reference:
    if model_folder.holds_graph(source):
        if options.quant != "none":
            raise ExportError(
                f"{source} holds a graph of operators, and int8 takes linear layers of PyTorch; use --quant none, or "
                "prune with destination stock or per-layer"
            )
        return fixed_size(saved_subject(source), options)
    model: Any = model_folder.module(source)
    if not is_decoder(model):
        return fixed_size(subject_of_model(model, source), options)
    subject = static_subject(model, options.static)
    return Reference(subject, parity.FLOAT32, extra=(greedy_case(subject),))


def _write(subject: Subject, folder: Path, options: ExportOptions) -> dict[str, Any]:
    module = _quantized(subject.module) if options.quant == "int8" else subject.module
    decoder = module.decoder if isinstance(module, Uncached) else None
    program = _decoder(decoder) if decoder else captured(module, subject.args, {}, None)
    constants = _constant_methods(decoder, subject.vocabulary) if decoder else {}
    try:
        with quiet_exporters():
            operators, made = _lowered(program, constants)
    except ExportError:
        raise
    except Exception as fault:  # its passes raise anything
        raise ExportError(f"ExecuTorch cannot lower the model{because(fault)}") from fault
    with (folder / FILE).open("wb") as file:
        made.write_to_file(file)
    return {"operators": operators, "methods": constants}


def _quantized(module: nn.Module) -> Any:
    """Copy with linear layers in 8 bits as XNNPACK computes them; other layers are unchanged.

    Weights have one scale for each output; activations are rounded token by token.

    Raises:
        ExportError: if there is no linear layer.
    """
    if not any(isinstance(part, nn.Linear) for part in module.modules()):
        raise ExportError(f"{type(module).__name__} has no linear layer to store in int8; use --quant none")
    torchao, made = import_package("torchao.quantization", "executorch"), deepcopy(module)
    granularity = import_package("torchao.quantization.granularity", "executorch").PerAxis(0)
    with quiet_exporters():
        torchao.quantize_(
            made, torchao.Int8DynamicActivationIntxWeightConfig(torch.int8, weight_granularity=granularity)
        )
    return made


def _lowered(program: ExportedProgram, constants: dict[str, Any]) -> tuple[dict[str, int], Any]:
    """Lowered program, and its operators with their counts; a part that XNNPACK computes is one operator."""
    exir = import_package("executorch.exir", "executorch")
    partition = import_package("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    partitioner = [partition.XnnpackPartitioner()]
    edge = exir.to_edge_transform_and_lower(program, partitioner=partitioner, constant_methods=constants)
    called = [node.target for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    kinds = Counter(str(getattr(target, "__name__", target)) for target in called)
    return dict(sorted(kinds.items())), edge.to_executorch()


def _decoder(decoder: StaticDecoder) -> ExportedProgram:
    """Capture a decoder, with a dynamic number of tokens only where it may take several at once."""
    chunk = decoder.chunk
    free = Dim("sequence", min=1, max=chunk) if chunk > 1 else None
    args = torch.zeros(1, chunk, dtype=torch.long), torch.arange(chunk)
    return captured(decoder, args, {}, ({1: free}, {0: free}) if free else None)


def _constant_methods(decoder: StaticDecoder, vocabulary: int) -> dict[str, Any]:
    """Constants that the runners of ExecuTorch read from a language model."""
    end: Any = decoder.model.config.get_text_config().eos_token_id
    return {
        _LENGTH: decoder.length, "get_max_seq_len": decoder.chunk if decoder.chunk > 1 else decoder.length,
        "get_vocab_size": vocabulary, "use_kv_cache": True, "enable_dynamic_shape": decoder.chunk > 1,
        **({} if end is None else {"get_eos_ids": end if isinstance(end, list) else [end]}),
    }  # fmt: skip


def _open(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Runnable:
    runtime = import_package("executorch.runtime", "executorch")
    try:
        program = runtime.Runtime.get().load_program(path, verification=runtime.Verification.InternalConsistency)
        method = program.load_method(_FORWARD)
    except (RuntimeError, OSError) as fault:
        raise ExportError(f"ExecuTorch cannot open {path.name}{because(fault)}; export it again") from fault
    if _LENGTH not in program.method_names:
        return ExecutorchRunner(method, inputs, outputs)
    return Stepwise(lambda *tokens: method.execute(tokens)[0].clone(), method.metadata.input_tensor_meta(0).sizes()[1])


FORMAT = Format("executorch", FILE, ("executorch", "torchao"), _reference, _write, _open)

TARGET = ExportTarget(
    export,
    Needs(
        ("per-layer", "stock", "free"),
        32,
        8,
        "groups of weights in 8 bits hold 32; XNNPACK takes 8 channels at a time",
        graphs=True,
    ),
    partial(verify, FORMAT),
)
