"""Printed form of a graph, for errors and golden files."""

from types import BuiltinFunctionType
from typing import Any

from torch import Tensor, fx


def node_text(node: fx.Node) -> str:
    """Text of one node: its name, its call, and the type of its value."""
    if node.op in ("placeholder", "get_attr"):
        return f"{node.name} = {node.target}  {type_text(node.meta.get('val'))}"
    name = node.target.__name__ if isinstance(node.target, BuiltinFunctionType) else str(node.target)
    called = name.removeprefix("aten.").split(".")[0]
    args = ", ".join([*map(str, node.args), *(f"{key}={value}" for key, value in node.kwargs.items())])
    return f"{node.name} = {called}({args})  {type_text(node.meta.get('val'))}"


def type_text(val: Any) -> str:
    """Type of a value, such as ``float32[2, s0, 64]``."""
    if not isinstance(val, Tensor):
        return ""
    return f"{str(val.dtype).removeprefix('torch.')}[{', '.join(map(str, val.shape))}]"


def neighborhood(node: fx.Node) -> str:
    """Text of a marked node below the nodes that it reads."""
    return "\n".join([*(f"    {node_text(n)}" for n in node.all_input_nodes), f"  > {node_text(node)}"])


def text(graph: fx.Graph) -> str:
    """Text of a graph, one node a line, without parameters that nothing reads."""
    shown = (node for node in graph.nodes if node.users or node.op != "get_attr")
    return "".join(f"{node_text(node).rstrip()}\n" for node in shown)
