"""A dependency graph (`Dependencies.to_networkx`) as a file: GraphML, JSON, or DOT for Graphviz; and its colours."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import networkx as nx

from graphprune.errors import LoadError, RegistryError, because, misread
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.support.atomic_output import new_file

Graph: TypeAlias = "nx.MultiDiGraph[str]"

#: A number by the name of a group, or what was measured of groups.
Numbers: TypeAlias = Mapping[str, float] | Sensitivities

#: From the least to the greatest number: shades that differ in lightness too, so that a copier keeps them apart.
SHADES = ("#fcfdbf", "#fecf92", "#fe9f6d", "#f7705c", "#de4968", "#b63679", "#8c2981", "#641a80")


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


def coloured(graph: Graph, given: Numbers) -> Graph:
    """A copy whose groups have the attribute ``value``, their number, and ``fillcolor`` (see `shades`).

    `given` holds any number by the name of a group, its sensitivity say; groups without one keep their colour.

    Raises:
        RegistryError: if there is no such group.
        LoadError: if a number is not finite.
    """
    numbers = by_group(given)
    groups = {name for name, data in graph.nodes(data=True) if data["kind"] == "group"}
    if unknown := sorted(numbers.keys() - groups):
        raise RegistryError(f"no group {unknown[0]!r} in this graph; `graphprune inspect` lists its groups")
    copy = graph.copy()
    for name, shade in shades(numbers).items():
        font = "white" if shade in SHADES[len(SHADES) // 2 :] else "black"  # to be read on it
        copy.nodes[name].update(value=float(numbers[name]), fillcolor=shade, fontcolor=font)
    return copy


def shades(numbers: Mapping[str, float]) -> dict[str, str]:
    """One of `SHADES` for every number: the first for the least of them, the last for the greatest.

    Raises:
        LoadError: if a number is not finite.
    """
    if odd := [name for name, number in numbers.items() if not math.isfinite(number)]:
        raise LoadError(f"the number of group {odd[0]} is {numbers[odd[0]]}; give one that is finite")
    low, high = min(numbers.values(), default=0.0), max(numbers.values(), default=0.0)
    shares = {name: (number - low) / (high - low) if high > low else 0.0 for name, number in numbers.items()}
    return {name: SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)] for name, share in shares.items()}


def by_group(given: Numbers) -> Mapping[str, float]:
    """A number by the name of a group: of sensitivities, how much the loss rises at the deepest cut."""
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
