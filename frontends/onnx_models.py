"""Load ONNX files: the graph is captured as any module, and compared with ONNX Runtime."""

from __future__ import annotations

import keyword
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

from graphprune.errors import LoadError, VerificationError, because
from graphprune.execution import interpreter
from graphprune.execution.cases.fresh_inputs import PLAIN, Variant, attempts, draw
from graphprune.execution.cases.input_sizes import candidates
from graphprune.execution.module_state import named_keywords
from graphprune.execution.output_comparison import compare, difference, paired
from graphprune.frontends import FRONTENDS, Frontend
from graphprune.frontends.modules import export, from_exported
from graphprune.frontends.onnx_import.example_sizes import Shapes, example
from graphprune.frontends.onnx_import.first_node import first_difference
from graphprune.frontends.onnx_import.onnx_module import TranslatedGraph
from graphprune.frontends.onnx_import.onnx_reading import read, shape_of
from graphprune.frontends.onnx_import.reference_session import ReferenceSession
from graphprune.ir.guards import fixed_size
from graphprune.ir.program import Program, Source

log = logging.getLogger(__name__)

KIND = "onnx"
STATE = ("past*", "present*")  # inputs and outputs of a cache, which may be cut
SEED = 1
ROUNDED = 0.1  # of the typical value: codes of activations may differ by one


def load(file: Path | str, *, dequantize: bool = False, sizes: Mapping[str, int] | None = None) -> Program:
    """Load an ONNX file; its quantized weights become floating-point numbers if `dequantize` is set.

    The program is compared with ONNX Runtime, at several sizes of each dynamic dimension. `sizes` has those at which
    the file runs, by the names of dimensions; others are tried.

    Raises:
        LoadError: if the file is damaged, has operators that are not translated, or computes otherwise when translated.
    """
    file = Path(file)
    model = read(file)
    shapes = {str(v.name): shape_of(file, v) for v in model.graph.inputs if v.name not in model.graph.initializers}
    module = TranslatedGraph(model, str(file), dequantize).eval()
    session = ReferenceSession(file)
    feeds, expected = example(str(file), shapes, session, sizes or {})
    _require_same(file, module, feeds, expected)
    program = _captured(module, feeds, shapes)
    program = replace(program, source=Source(file, KIND, _dtype(module), names=module.renamed()))
    program = replace(
        program, inputs=draw(program, SEED, Variant("traced", PLAIN), next(candidates(program, "traced")))
    )
    if module.rounds:
        why = f"the file rounds activations, and the program does not: {_apart(module, feeds, expected)}"
        log.warning("%s: %s", file, why)
        return replace(program, unchecked=(*program.unchecked, why))
    return _compared(file, program, session, tuple(shapes))


def _require_same(
    file: Path, module: TranslatedGraph, feeds: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Compare the translation with ONNX Runtime before the capture, with activations that are rounded as in the file.

    Raises:
        LoadError: if they differ; it names the first node that does.
    """
    tolerance = ROUNDED if module.rounds else None
    try:
        outputs = _run(module, feeds, rounding=True)
        compare(dict(expected), outputs, f"{file} and its translation", tolerance, weights=_dtype(module))
    except VerificationError as fault:
        where = "" if module.rounds else first_difference(file, module, feeds, _dtype(module))
        raise LoadError(
            f"{file}: the translation computes other outputs than ONNX Runtime{where}{because(fault)}"
        ) from fault


def _run(module: TranslatedGraph, feeds: Mapping[str, Tensor], rounding: bool = False) -> dict[str, Tensor]:
    """Outputs of the translation, with activations that are rounded where the file rounds them, or not."""
    module.plan.rounding = rounding
    try:
        with torch.no_grad():
            outputs: dict[str, Tensor] = module(**dict(zip(identifiers(feeds), feeds.values(), strict=True)))
            return outputs
    finally:
        module.plan.rounding = False


def _apart(module: TranslatedGraph, feeds: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Words about the difference from a file that rounds activations."""
    outputs = _run(module, feeds)
    pairs = [(a, b) for a, b in paired(dict(expected), outputs, "output") if a.is_floating_point()]
    apart = max((difference(a, b).relative for a, b in pairs), default=0.0)
    return f"outputs differ by {apart:.1%} of the typical value"


def _captured(module: TranslatedGraph, feeds: Mapping[str, Tensor], shapes: Shapes) -> Program:
    dynamic, keywords = ShapesCollection(), {}  # type: ignore[no-untyped-call]
    for (name, tensor), identifier in zip(feeds.items(), identifiers(feeds), strict=True):
        keywords[identifier] = tensor
        dynamic[tensor] = {dim: Dim.AUTO for dim, size in enumerate(shapes[name]) if isinstance(size, str)}
    with named_keywords(module, keywords):
        exported = export(module, (), keywords, dynamic)
    state = tuple(p for p in STATE if any(re.match(p.rstrip("*"), name) for name in (*feeds, *module.outputs)))
    program = from_exported(exported, ((), keywords), state=state)
    _warn_of_fixed_sizes(program, shapes)
    return program


def identifiers(names: Mapping[str, Any]) -> list[str]:
    """Names of keywords for inputs, whose names may be no identifiers of Python."""
    known: dict[str, str] = {}
    for name in names:
        text = re.sub(r"\W", "_", name)
        text = f"input_{text}" if not text.isidentifier() or keyword.iskeyword(text) else text
        while text in known.values() or text == "self":
            text += "_"
        known[name] = text
    return list(known.values())


def _warn_of_fixed_sizes(program: Program, shapes: Shapes) -> None:
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, (name, sizes) in zip(nodes, shapes.items(), strict=True):
        for dim, size in enumerate(sizes):
            if isinstance(size, str) and (fixed := fixed_size(node.meta["val"].shape[dim])) is not None:
                log.warning(
                    "dimension %s of input %s has the fixed size %d: the graph computes with this number",
                    size, name, fixed,
                )  # fmt: skip


def _compared(file: Path, program: Program, session: ReferenceSession, names: tuple[str, ...]) -> Program:
    """Program that is compared with ONNX Runtime on inputs of other sizes; what is not compared is listed.

    Raises:
        LoadError: if they differ.
    """
    unchecked = []
    for kind in ("large", "small"):
        if not any(True for _ in _agreeing(file, program, session, names, kind)):
            unchecked.append(f"inputs of {kind} sizes: ONNX Runtime runs none of those that were tried")
    for why in unchecked:
        log.warning("%s is not compared with its program: %s", file, why)
    return replace(program, unchecked=(*program.unchecked, *unchecked))


def _agreeing(file: Path, program: Program, session: ReferenceSession, names: tuple[str, ...], kind: str) -> Any:
    """Yield once inputs of a kind are compared."""
    assert program.source is not None
    for inputs, _ in attempts(program, SEED, Variant(kind, PLAIN)):
        if program.violation(*inputs) is not None:
            continue
        leaves = program.flat(*inputs)
        try:
            expected = session.run(dict(zip(names, leaves, strict=True)))
        except Exception:  # sizes that the graph does not accept
            continue
        (outputs,) = interpreter.run(program, [inputs], (SEED,))
        try:
            compare(expected, outputs, f"{file} and its program", weights=program.source.dtype)
        except VerificationError as fault:
            raise LoadError(f"{file}: the program computes other outputs than ONNX Runtime{because(fault)}") from fault
        yield inputs
        return


def _dtype(module: nn.Module) -> torch.dtype:
    counts: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=lambda kind: counts[kind]) if counts else torch.float32


def _is_onnx(text: str) -> bool:
    return text.lower().endswith(".onnx")


FRONTENDS.register(KIND)(Frontend("an .onnx file", _is_onnx, load))
