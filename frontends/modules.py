"""Capture any `nn.Module` as a program with torch.export."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from graphprune.errors import TraceError
from graphprune.execution.module_state import (
    eager_branches,
    evaluation_mode,
    named_keywords,
    preserved_state,
    seeded,
    uncompiled,
)
from graphprune.execution.wrappers import plain_names, require_module
from graphprune.frontends.calls import Arguments, require_plain, unshared, with_new_containers
from graphprune.frontends.captured_guards import guards
from graphprune.frontends.lowering import functional, tidy
from graphprune.frontends.refusals import explain, quiet
from graphprune.frontends.result_classes import register_dataclasses
from graphprune.frontends.trace_check import CapturedModule
from graphprune.frontends.trace_check import check as compared
from graphprune.huggingface import traced_model
from graphprune.huggingface.adapters import ranks_of
from graphprune.ir.guards import fixed_size
from graphprune.ir.leaf_names import matches_any, output_names
from graphprune.ir.module_names import require_names
from graphprune.ir.program import Program, Source
from graphprune.ir.weights import MaterializedWeights

log = logging.getLogger(__name__)

UNCHECKED = "the caller asked for no comparison"
UNKNOWN_RESULT = "in output, which is not a known type"


def trace(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] = MappingProxyType({}),
    *,
    dynamic_shapes: Any = None,
    state: tuple[str, ...] = (),
    check: bool = True,
) -> Program:
    """Capture `module`, called with `args` and `kwargs`, as a program.

    The module is captured in evaluation mode, without wrappers such as DataParallel. By default the first dimension of
    every tensor and the second of every integer tensor (batch and sequence) stay dynamic where their example size is
    not 1. Inputs and outputs named in `state` may be pruned: globs of their names, such as ``past_key_values*``,
    ``embedding`` or ``output 1``. The program is compared with the module, on these inputs and on others, unless
    `check` is False. The module and the inputs are afterwards as they were before.

    Raises:
        TraceError: if torch.export refuses the module or the program differs from it; names the line of model code.
    """
    module = require_module(module)
    args, kwargs = _arguments(args, kwargs)
    leaves = ((f"input {i}", leaf) for i, leaf in enumerate(pytree.tree_leaves((args, kwargs))))
    require_plain(module, (*_named(module), *leaves))
    require_names(module)
    inputs = unshared(module, args, kwargs)
    subject = CapturedModule.of(module)
    program = from_exported(_captured(subject, module, inputs, dynamic_shapes), inputs, state=state)
    _require_matches(program)
    program = replace(program, fixed=ranks_of(module), traced=traced_model.of(module), captured=module)
    if dynamic_shapes is None:
        _warn_of_fixed_sizes(program)
    return compared(program, subject) if check else replace(program, unchecked=(*program.unchecked, UNCHECKED))


def _captured(subject: CapturedModule, module: nn.Module, inputs: Arguments, shapes: Any) -> ExportedProgram:
    """Capture; once more, where that fails, with its results made known or by the branches of eager mode.

    Raises:
        TraceError: that of the first attempt, if both fail.
    """
    try:
        return _isolated(module, inputs, shapes)
    except TraceError as fault:
        if UNKNOWN_RESULT in str(fault) and _register_results(subject, inputs):
            return _isolated(module, inputs, shapes)
        try:
            with eager_branches():
                return _isolated(module, inputs, shapes)
        except TraceError:
            raise fault from fault.__cause__


def _isolated(module: nn.Module, inputs: Arguments, shapes: Any) -> ExportedProgram:
    """Capture that leaves the module and the random numbers of the caller as they are."""
    with ExitStack() as blocks:
        for block in (
            evaluation_mode(module),
            preserved_state(module),
            uncompiled(module),
            plain_names(module),
            seeded(0),
        ):
            blocks.enter_context(block)
        blocks.enter_context(named_keywords(module, inputs[1]))
        known = dict(module.named_parameters())
        exported = export(module, *with_new_containers(inputs), shapes)
        _require_no_new(module, known)
        return exported


def _require_no_new(module: nn.Module, known: Mapping[str, Tensor]) -> None:
    """Refuse a module that makes parameters in its first call: the capture would draw new random ones in every run.

    Raises:
        TraceError: if it made some.
    """
    if new := [name for name, _ in module.named_parameters() if name not in known]:
        raise TraceError(
            f"{type(module).__name__} makes parameters in its first call ({', '.join(new[:3])}), which a capture would "
            "not hold: call the module once on the example, then trace it"
        )


def _register_results(subject: CapturedModule, inputs: Arguments) -> bool:
    """Make dataclasses that a module returns known to torch; whether there are any."""
    try:
        return register_dataclasses(subject.run(inputs))
    except Exception:  # a module that fails is explained by torch.export
        return False


def require_arguments(args: Any, kwargs: Any, call: str = "trace(module") -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Arguments of an example call, as a tuple and a mapping; `call` is how the message begins the right one.

    Raises:
        TraceError: if they are of other types, such as a single tensor.
    """
    if isinstance(args, list):
        args = tuple(args)
    if not isinstance(args, tuple) or not isinstance(kwargs, Mapping):
        raise TraceError(
            f"args is a {type(args).__name__} and kwargs a {type(kwargs).__name__}, expected a tuple and a dict: write "
            f"graphprune.{call}, (x,)) for a module that takes one tensor"
        )
    return args, kwargs


def example_call(args: Any, kwargs: Any, call: str) -> Arguments | None:
    """Arguments of the example call of a user; None if there are none.

    Raises:
        TraceError: as `require_arguments` does.
    """
    args, kwargs = require_arguments(args, kwargs, call)
    return (args, dict(kwargs)) if args or kwargs else None


def _arguments(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the types that torch.export takes.

    Raises:
        TraceError: if they are of others.
    """
    args, kwargs = require_arguments(args, kwargs)
    register_dataclasses((args, dict(kwargs)))
    return args, dict(kwargs)


def export(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any = None) -> ExportedProgram:
    """Capture the functional graph of high-level ATen operators.

    Raises:
        TraceError: if torch.export refuses.
    """
    try:
        with torch.no_grad(), quiet():
            dynamic: Any = shapes if shapes is not None else _dynamic(args, kwargs)
            exported = torch.export.export(module, args, dict(kwargs), strict=False, dynamic_shapes=dynamic)
            return functional(exported)
    except Exception as fault:
        raise TraceError(explain(module, fault)) from fault


def from_exported(
    exported: ExportedProgram,
    inputs: tuple[tuple[Any, ...], Mapping[str, Any]],
    *,
    state: tuple[str, ...] = (),
    source: Source | None = None,
) -> Program:
    """Program made of an `ExportedProgram`; conditions on its inputs that cannot be evaluated are warned about."""
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    known, unknown = guards(exported, module, inputs)
    ties = _ties(module)
    stored = _tensors(module, ties)
    tidy(module.graph)
    used = {ties.get(str(node.target), str(node.target)) for node in module.graph.nodes if node.op == "get_attr"}
    unused = (p.numel() for name, p in module.named_parameters() if name not in used and name not in ties)
    return Program(
        graph=module.graph,
        weights=MaterializedWeights(stored),
        parameters=frozenset(name for name, _ in module.named_parameters()),
        ties=MappingProxyType(ties),
        inputs=inputs,
        submodules=MappingProxyType({n: m for n, m in module.named_children() if isinstance(m, fx.GraphModule)}),
        state=state,
        source=source,
        guards=tuple(known),
        unchecked=tuple(f"whether inputs fulfil {condition}" for condition in unknown),
        constants=sum(unused),
    )


def _require_matches(program: Program) -> None:
    """Refuse patterns of state that match no input and no output.

    Raises:
        TraceError: if there is one, with all names.
    """
    inputs = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    outputs = output_names(program.graph)
    for pattern in program.state:
        if not any(matches_any(names, (pattern,)) for names in (inputs, *outputs)):
            known = [names[0] or names[-1] for names in outputs]
            raise TraceError(
                f"state {pattern!r} matches no input and no output; the inputs are {', '.join(inputs) or 'none'}, the "
                f"outputs {', '.join(known)}"
            )


def _warn_of_fixed_sizes(program: Program) -> None:
    """Warn of sizes that stay dynamic by default, but which the model computes with as numbers."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, leaf in zip(nodes, program.flat(*program.inputs), strict=True):
        for dim in _free(leaf):
            if (size := fixed_size(node.meta["val"].shape[dim])) is not None:
                log.warning(
                    "dimension %d of input %s has the fixed size %d in the capture, because the model computes with "
                    "this number, or combines it with a size of another input that is fixed; trace a model that was "
                    "not run before, or one for each size, or name the sizes that vary (dynamic_shapes)",
                    dim, node.name, size,
                )  # fmt: skip


def _free(leaf: Any) -> list[int]:
    """Dimensions of an input that are dynamic by default."""
    if not isinstance(leaf, Tensor) or not leaf.dim():
        return []
    last = 1 if leaf.is_floating_point() or leaf.is_complex() else 2
    return [dim for dim in range(min(last, leaf.dim())) if leaf.shape[dim] != 1]


def _dynamic(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ShapesCollection:
    """Dynamic dimensions: batch of every tensor and sequence of every integer tensor, where the example is not 1."""
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in pytree.tree_leaves((args, dict(kwargs))):
        if isinstance(leaf, Tensor) and leaf.dim():
            shapes[leaf] = dict.fromkeys(_free(leaf), Dim.AUTO)
    return shapes


def _ties(module: nn.Module) -> dict[str, str]:
    """Further names of parameters that share their memory with an earlier one."""
    first: dict[object, str] = {}
    ties = {}
    for name, tensor in _named(module):
        earlier = first.setdefault(_memory(tensor), name)
        if earlier != name:
            ties[name] = earlier
    return ties


def _memory(tensor: Tensor) -> object:
    """Key that is equal for tensors over the same memory; a saved program has several tensors over one storage."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _tensors(module: nn.Module, ties: Mapping[str, str]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in _named(module) if name not in ties}


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and lifted constants with all their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for prefix, child in module.named_modules():
        for name, value in vars(child).items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}".lstrip("."), value
