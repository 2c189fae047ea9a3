"""A dependency graph as a file: DOT for Graphviz, GraphML for everything else."""

import json
from pathlib import Path
from typing import Any

import networkx as nx

from graphprune.atomic import new_file


def write_dot(graph: "nx.DiGraph[str]", path: Path) -> None:
    """Write the graph for Graphviz, groups as ellipses and parameters as boxes."""
    lines = ["digraph graphprune {", "  rankdir=LR;"]
    for name, data in graph.nodes(data=True):
        label = f"{name}\n{data['size']}" if "size" in data else name
        lines.append(f"  {_quoted(name)}{_attributes({'label': label, 'shape': _shape(data)})};")
    for start, end, data in graph.edges(data=True):
        lines.append(f"  {_quoted(start)} -> {_quoted(end)}{_attributes({'label': data.get('role', '')})};")
    with new_file(path, force=True) as file:
        file.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")


def write_graphml(graph: "nx.DiGraph[str]", path: Path) -> None:
    """Write the graph as GraphML."""
    with new_file(path, force=True) as file:
        nx.write_graphml(graph, file)


def _shape(data: dict[str, Any]) -> str:
    return "ellipse" if data.get("kind") == "group" else "box"


def _attributes(data: dict[str, str]) -> str:
    return " [" + ", ".join(f"{name}={_quoted(value)}" for name, value in data.items()) + "]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
