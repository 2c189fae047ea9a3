"""A dependency graph (`Dependencies.to_networkx`) as a file: GraphML, JSON, or DOT for Graphviz; and its colors."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import networkx as nx

from graphprune.display.color_scale import ColorScale
from graphprune.errors import LoadError, RegistryError, because, misread
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.support.atomic_output import new_file

Graph: TypeAlias = "nx.MultiDiGraph[str]"

#: A number by the name of a group, or the sensitivities of groups.
Numbers: TypeAlias = Mapping[str, float] | Sensitivities


def write_graphml(graph: Graph, path: Path | str) -> None:
    """Write the graph as GraphML, with all attributes."""
    with new_file(path, force=True) as file:
        nx.write_graphml(graph, file)


def write_json(graph: Graph, path: Path | str) -> None:
    """Write the graph as JSON in the form of `networkx.node_link_data`, with all attributes."""
    with new_file(path, force=True) as file:
        file.write_text(json.dumps(nx.node_link_data(graph, edges="edges"), indent=1) + "\n", encoding="utf-8")


def write_dot(graph: Graph, path: Path | str) -> None:
    """Write the graph for Graphviz, with all attributes: groups as ellipses and tensors as boxes."""
    lines = ["digraph graphprune {", "  rankdir=LR;", "  node [style=filled, fillcolor=white];"]
    for name, data in graph.nodes(data=True):
        looks = {"label": f"{name}\n{_size(data)}", "shape": _shape(data)}
        lines.append(f"  {_quoted(name)}{_attributes({**_renamed(data), **looks})};")
    for start, end, data in graph.edges(data=True):
        lines.append(f"  {_quoted(start)} -> {_quoted(end)}{_attributes({**data, 'label': data['role']})};")
    with new_file(path, force=True) as file:
        file.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")


def colored(graph: Graph, given: Numbers) -> Graph:
    """A copy whose groups have the attribute ``value``, their number, and ``fillcolor`` (see `color_scale`).

    `given` holds any number by the name of a group, or sensitivities; groups without a number keep their color.

    Raises:
        RegistryError: if there is no such group.
        LoadError: if a number is not finite.
    """
    numbers = by_group(given)
    groups = {name for name, data in graph.nodes(data=True) if data["kind"] == "group"}
    if unknown := sorted(numbers.keys() - groups):
        raise RegistryError(f"no group {unknown[0]!r} in this graph; `graphprune inspect` lists its groups")
    copy, scale = graph.copy(), color_scale(given)
    for name, number in numbers.items():
        copy.nodes[name].update(value=float(number), fillcolor=scale.shade(number), fontcolor=scale.text(number))
    return copy


def color_scale(given: Numbers) -> ColorScale:
    """The colors of numbers: linear, or logarithmic for sensitivities, so that a heat map has the same ones.

    Raises:
        LoadError: if a number is not finite.
    """
    if isinstance(given, Sensitivities):
        return given.color_scale
    if odd := [name for name, number in given.items() if not math.isfinite(number)]:
        raise LoadError(f"the number of group {odd[0]} is {given[odd[0]]}; give one that is finite")
    return ColorScale.linear(given.values())


def by_group(given: Numbers) -> Mapping[str, float]:
    """A number by the name of a group; of sensitivities, the rise of the loss at the deepest cut."""
    if isinstance(given, Sensitivities):
        return {name: given.rise(name)[-1][1] for name in given.groups}
    return given


def read_numbers(path: Path | str) -> Numbers:
    """A file of JSON: a table of sensitivities, or a number by the name of a group.

    Raises:
        LoadError: if it cannot be read, or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as fault:
        raise LoadError(f"cannot read {path}{because(fault)}") from fault
    try:
        table = json.loads(text)
        if "trials" in table:
            return Sensitivities.load(path)
        return {name: float(number) for name, number in table.items()}
    except (ValueError, TypeError, AttributeError) as fault:
        raise LoadError(
            f'{path}: not an object of numbers by group, such as {{"NAME": 0.5}}{misread(fault)}'
        ) from fault


def _size(data: Mapping[str, Any]) -> str:
    return f"{data['size']} {data['label']}" if data["kind"] == "group" else str(data["shape"])


def _shape(data: Mapping[str, Any]) -> str:
    return "ellipse" if data["kind"] == "group" else "box"


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a node under names that Graphviz has no meaning of its own for."""
    return {{"shape": "sizes", "label": "indices"}.get(name, name): value for name, value in data.items()}


def _attributes(data: Mapping[str, Any]) -> str:
    return " [" + ", ".join(f"{name}={_quoted(value)}" for name, value in data.items()) + "]"


def _quoted(value: object) -> str:
    """A string of DOT; a backslash stays one, and `\\n` breaks the line of a label."""
    return json.dumps(str(value), ensure_ascii=False)
