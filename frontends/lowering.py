"""Reduce a captured graph to functional form with few operators, without a second trace where possible.

`ExportedProgram.run_decompositions` traces a model twice more, which takes several times as long as the capture.
Most models need from it only that a handful of convenience operators disappear, and that is done here in place.
"""

from collections.abc import Callable
from operator import getitem
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

aten = torch.ops.aten

#: Replacement of a node; None where it is unknown without tracing.
Lowering = Callable[[fx.Node], "tuple[Any, tuple[Any, ...], dict[str, Any]] | fx.Node | None"]


def functional(exported: ExportedProgram) -> ExportedProgram:
    """Program itself if `tidy` can make it functional, else a program that is traced again."""
    if all(_is_plain(node) for node in exported.graph.nodes):
        return exported
    traced: ExportedProgram = exported.run_decompositions({})
    traced._guards_code = list(dict.fromkeys((*exported._guards_code, *traced._guards_code)))
    return traced


def tidy(graph: fx.Graph) -> None:
    """Lower convenience operators, make every view a reshape and drop assertions, which carry no axes.

    A cut may break the contiguity that a view relies on; in a functional graph a reshape means the same. A change of
    layout disappears only where nothing later sees strides.
    """
    seen = strides_seen(graph)
    for node in list(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
        elif node in seen and _changes_layout(node):
            _clone(node)
        elif node.target in LOWERINGS:
            _replace(graph, node)
        elif node.target is aten.copy_.default:  # into a buffer or an input: put in after the trace, without a value
            node.meta["val"] = _same(node).meta["val"]
    graph.eliminate_dead_code(_has_side_effects)


def _has_side_effects(node: fx.Node) -> bool:
    """Whether a node does more than compute its value, as one that draws random numbers for itself and later ones."""
    if not isinstance(node.target, OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return bool(node.is_impure())
    defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}
    values = {name: 1 if value is None else value for name, value in {**defaults, **_by_name(node)}.items()}
    return all(values.get(name, 1) for name in ("dropout_p", "p", "train", "training"))


def strides_seen(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose strides reach an output or an operator that reads them, through operators that hand strides on."""
    seen: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if any(_reads_strides(user) or (user in seen and user.target not in _CONTIGUOUS) for user in node.users):
            seen.add(node)
    return seen


def _reads_strides(node: fx.Node) -> bool:
    """Whether results may depend on the strides of inputs: of outputs, raw views, subgraphs and custom operators."""
    if node.op != "call_function" or node.target in _STRIDE_READERS:
        return node.op != "get_attr"
    return isinstance(node.target, torch._ops.HigherOrderOperator) or (
        isinstance(node.target, OpOverload) and node.target.namespace not in ("aten", "prims")
    )


def _changes_layout(node: fx.Node) -> bool:
    """Whether the node makes a copy with other strides, or any copy."""
    if node.target is aten.contiguous.default:
        return True
    if node.target not in _CONVERSIONS or _to(node) is None:
        return False
    _, copy, memory_format = _conversion(node)
    return copy or memory_format not in (None, torch.preserve_format)


def _clone(node: fx.Node) -> None:
    """Lower a change of layout to a copy with that layout."""
    dtype, _, memory_format = _conversion(node)
    source = node.args[0]
    lowered: dict[str, Any] = {"memory_format": memory_format} if memory_format else {}
    if dtype == _same(node).meta["val"].dtype:
        node.target, node.args, node.kwargs = aten.clone.default, (source,), lowered
    else:
        node.target, node.args, node.kwargs = aten._to_copy.default, (source,), {"dtype": dtype, **lowered}


def _conversion(node: fx.Node) -> tuple[torch.dtype, bool, torch.memory_format | None]:
    """Type of the result, whether it must be a copy, and its memory format, by the names of the operator's schema."""
    named = _by_name(node)
    default = torch.contiguous_format if node.target is aten.contiguous.default else None
    memory_format = cast(torch.memory_format | None, named.get("memory_format", default))
    return node.meta["val"].dtype, bool(named.get("copy", False)), memory_format


def _by_name(node: fx.Node) -> dict[str, Any]:
    """Arguments of a node by the names of its operator's schema."""
    assert isinstance(node.target, OpOverload)
    names = (argument.name for argument in node.target._schema.arguments)
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _is_plain(node: fx.Node) -> bool:
    """Whether the node has nothing that only another trace can remove."""
    if node.op == "get_attr":
        return False  # a subgraph
    if node.op != "call_function" or node.target is getitem:
        return True
    if not isinstance(node.target, OpOverload):  # a subgraph, or a level of vmap; arithmetic with sizes is no tensor
        return not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))
    if node.target in LOWERINGS:
        return LOWERINGS[node.target](node) is not None
    return not node.target._schema.is_mutable and not _is_aliasing_composite(node.target)


def _is_aliasing_composite(op: OpOverload) -> bool:
    """Whether this is a composite operator that may return a view; torch, too, leaves other composites whole."""
    name = op.name()  # type: ignore[no-untyped-call]
    composite: bool = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    return composite and any(value.alias_info for value in op._schema.returns)


def _replace(graph: fx.Graph, node: fx.Node) -> None:
    lowered = LOWERINGS[node.target](node)
    if isinstance(lowered, fx.Node):
        node.replace_all_uses_with(lowered)
        graph.erase_node(node)
    elif lowered is not None:
        node.target, node.args, node.kwargs = lowered


def _same(node: fx.Node) -> fx.Node:
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _reshape(node: fx.Node) -> Any:
    return aten.reshape.default, node.args, dict(node.kwargs)


def _copy_of_constant(node: fx.Node) -> Any:
    return aten.clone.default, node.args, {}


def _dropout(node: fx.Node) -> Any:
    return None if node.args[2] else _same(node)


def _to(node: fx.Node) -> Any:
    before, after = _same(node).meta["val"], node.meta["val"]
    if before.device != after.device:
        return None
    if before.dtype == after.dtype:
        return _same(node)
    return aten._to_copy.default, (node.args[0],), {"dtype": after.dtype}


def _sizes(node: fx.Node) -> Any:
    """Reshape to the sizes of the value, one of which may be dynamic."""
    sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
    ambiguous = sizes.count(-1) > 1 or (-1 in sizes and 0 in sizes)
    return None if ambiguous else (aten.reshape.default, (node.args[0], sizes), {})


def _chunk(node: fx.Node) -> Any:
    x, count, dim = cast(tuple[fx.Node, int, int], (*node.args, 0)[:3])
    size = _same(node).meta["val"].shape[dim]
    return (aten.split.Tensor, (x, -(-size // count), dim), {}) if isinstance(size, int) and size else None


def _matrix_transpose(node: fx.Node) -> Any:
    return aten.transpose.int, (node.args[0], -2, -1), {}


def _narrow(node: fx.Node) -> Any:
    x, dim, start, length = node.args
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return None
    return aten.slice.Tensor, (x, dim, start, start + length), {}


_ASSERTIONS = (
    aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten.sym_constrain_range_for_size.default,
)  # fmt: skip

_CONVERSIONS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other)

#: Operators whose results depend on the strides of their inputs.
_STRIDE_READERS = (
    aten.as_strided.default, aten.as_strided_copy.default, aten.as_strided_scatter.default, aten.view.dtype,
    aten.view_as_complex.default, aten.sym_stride.int, aten.sym_storage_offset.default,
)  # fmt: skip

#: Operators whose results are contiguous, whatever the strides of their inputs.
_CONTIGUOUS = (
    aten.linear.default, aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten.embedding.default,
)  # fmt: skip

LOWERINGS: dict[Any, Lowering] = {
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.contiguous.default: _same,
    aten.detach.default: _same,
    aten.detach_.default: _same,
    aten.lift_fresh_copy.default: _copy_of_constant,
    aten.alias.default: _same,
    aten.dropout.default: _dropout,
    aten.dropout_.default: _dropout,
    aten.to.dtype: _to,
    aten.to.device: _to,
    aten.to.dtype_layout: _to,
    aten.to.other: _to,
    aten.flatten.using_ints: _sizes,
    aten.unflatten.int: _sizes,
    aten.mT.default: _matrix_transpose,
    aten.narrow.default: _narrow,
    aten.chunk.default: _chunk,
}
