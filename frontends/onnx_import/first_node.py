"""First node of a file whose translation computes other values than ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from graphprune.errors import VerificationError
from graphprune.execution.output_comparison import compare
from graphprune.frontends.onnx_import.onnx_module import TranslatedGraph
from graphprune.frontends.onnx_import.operators import key
from graphprune.frontends.onnx_import.reference_session import ReferenceSession
from graphprune.support.packages import onnx


def first_difference(file: Path, module: TranslatedGraph, feeds: Mapping[str, Tensor], weights: torch.dtype) -> str:
    """Words about the first node that differs, to follow a message; empty if it cannot be determined.

    `weights` is the type of the weights.
    """
    watched = module.plan.watch = dict[str, Tensor]()
    try:
        with torch.no_grad():
            module(**feeds)
        model = onnx.load(str(file), load_external_data=False)
        outputs = {value.name for value in model.graph.output}
        names = [name for node in model.graph.node for name in node.output if name in watched and name not in outputs]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        expected = ReferenceSession(file, model.SerializeToString()).run(feeds)
    except Exception:  # the difference itself is known
        return ""
    finally:
        module.plan.watch = None
    for node in model.graph.node:
        for name in node.output:
            if name in watched and name in expected and not _same(expected[name], watched[name], weights):
                return f", from node {node.name or name!r} ({key(node.domain, node.op_type)}) on"
    return ""


def _same(expected: Tensor, value: Tensor, weights: torch.dtype) -> bool:
    try:
        compare([expected], [value], "node", weights=weights)
    except VerificationError:
        return False
    return True
