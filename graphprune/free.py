"""Saving what no stock class can hold: the graph itself, as a .pt2 file and, for a decoder, as ONNX with its cache."""

from collections import ChainMap
from pathlib import Path

import torch

from graphprune import hf
from graphprune.exporters import onnx, pt2
from graphprune.exporters.decoders import cached_decoder, is_decoder
from graphprune.exporters.folders import copy_beside
from graphprune.facts import Refits
from graphprune.frontends.modules import trace
from graphprune.passes.rewrite import rewrite
from graphprune.plans import Plan
from graphprune.program import Program
from graphprune.proof import compare

STATE = ("past_key_values*", "[[]1]*")  # the cache: inputs by name, outputs by their place behind the logits


def write(program: Program, folder: Path) -> list[tuple[str, float]]:
    """Fill a folder; return what was compared in it, and how far it was apart.

    Raises:
        ExportError: if a file cannot be written, or does not agree with the program.
    """
    report = pt2.write(program, folder / hf.PROGRAM)
    found = [("reloaded .pt2 and rewritten graph", float(report.facts["error"]["relative"]))]
    if program.source is None or program.source.kind != "huggingface":
        return found
    copy_beside(program.source.path, folder)
    model = hf.module(program.source.path)
    if is_decoder(model):
        cached = with_cache(program, model)
        found.append(("graph with cache and rewritten graph", _agree(program, cached)))
        onnx.export_program(cached, folder / "onnx")
    return found


def with_cache(program: Program, model: torch.nn.Module) -> Program:
    """The same cut of the same model, captured with its cache of keys and values as inputs and outputs."""
    module, args, kwargs, free = cached_decoder(model)
    cached = rewrite(trace(module, args, kwargs, dynamic_shapes=free, state=STATE), program.fact(Plan))
    refits = program.facts.get(Refits)
    new = {name: program.weights[name] for name in refits.by_weight} if refits else {}
    return cached.with_facts(weights=ChainMap(new, cached.weights), source=program.source)  # type: ignore[arg-type]


def _agree(program: Program, cached: Program) -> float:
    """Compare the logits of both at the start of a text, where the cache is empty."""
    ids = program.inputs[1]["input_ids"]
    places = torch.arange(ids.shape[1]).expand(*ids.shape).contiguous()
    past = [node.meta["val"].shape for node in cached.graph.nodes if node.op == "placeholder" and "past" in node.name]
    empty = [torch.zeros(ids.shape[0], shape[1], 0, shape[3]) for shape in past]
    leading = (ids, torch.ones_like(ids), places)[: len(cached.inputs[0]) - 1]
    pairs = list(zip(empty[::2], empty[1::2], strict=True))
    with torch.no_grad():
        logits = cached.module()(*leading, pairs)[0]
        reference = program.module()(**program.inputs[1])
    return compare([reference.logits], [logits], "graph with cache and rewritten graph").max_error
