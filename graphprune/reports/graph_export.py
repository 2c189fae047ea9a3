"""Write a dependency graph (`Dependencies.to_networkx`) as GraphML, JSON, or DOT for Graphviz, and color its groups."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import networkx as nx

from graphprune.display.color_scale import ColorScale
from graphprune.errors import ExportError, LoadError, RegistryError, because
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.support import json_fields
from graphprune.support.atomic_output import new_file

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_IN_DOT = re.compile("[\0\ud800-\udfff]")

Graph: TypeAlias = "nx.MultiDiGraph[str]"

#: Numbers by the name of a group, or the sensitivities of groups.
Numbers: TypeAlias = Mapping[str, float] | Sensitivities


def write_graphml(graph: Graph, path: Path | str) -> None:
    """Write the graph as GraphML, with all attributes.

    Raises:
        ExportError: if a text has characters that XML cannot hold.
    """
    _require_characters(graph, _NOT_IN_XML, "GraphML")
    with new_file(path, force=True) as file:
        nx.write_graphml(graph, file)


def write_json(graph: Graph, path: Path | str) -> None:
    """Write the graph as JSON in the form of `networkx.node_link_data`, with all attributes."""
    with new_file(path, force=True) as file:
        file.write_text(json.dumps(nx.node_link_data(graph, edges="edges"), indent=1) + "\n", encoding="utf-8")


def write_dot(graph: Graph, path: Path | str) -> None:
    """Write the graph for Graphviz, with all attributes: groups as ellipses and tensors as boxes.

    Raises:
        ExportError: if a text has characters that Graphviz cannot read.
    """
    _require_characters(graph, _NOT_IN_DOT, "DOT")
    lines = ["digraph graphprune {", "  rankdir=LR;", "  node [style=filled, fillcolor=white];"]
    for name, data in graph.nodes(data=True):
        looks = {"label": f"{name}\n{_size(data)}", "shape": _shape(data)}
        lines.append(f"  {_quoted(name)}{_attributes({**_renamed(data), **looks})};")
    for start, end, data in graph.edges(data=True):
        lines.append(f"  {_quoted(start)} -> {_quoted(end)}{_attributes({**data, 'label': data['role']})};")
    with new_file(path, force=True) as file:
        file.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")


def colored(graph: Graph, numbers: Numbers) -> Graph:
    """Copy of the graph whose groups have their number as ``value``, and ``fillcolor`` (see `color_scale`).

    `numbers` are any numbers by the name of a group, or sensitivities; groups without a number keep their color.

    Raises:
        RegistryError: if there is no such group.
        LoadError: if a number is not finite.
    """
    values = by_group(numbers)
    groups = {name for name, data in graph.nodes(data=True) if data["kind"] == "group"}
    if unknown := sorted(values.keys() - groups):
        raise RegistryError(f"no group {unknown[0]!r} in this graph; `graphprune inspect` lists its groups")
    copy, scale = graph.copy(), color_scale(numbers)
    for name, number in values.items():
        copy.nodes[name].update(value=float(number), fillcolor=scale.shade(number), fontcolor=scale.text(number))
    return copy


def color_scale(numbers: Numbers) -> ColorScale:
    """Color scale of numbers: linear, or for sensitivities logarithmic as in a heat map.

    Raises:
        LoadError: if a number is not finite.
    """
    if isinstance(numbers, Sensitivities):
        return numbers.color_scale
    if invalid := [name for name, number in numbers.items() if not math.isfinite(number)]:
        raise LoadError(f"the number of group {invalid[0]} is {numbers[invalid[0]]}; use a finite number")
    return ColorScale.linear(numbers.values())


def by_group(numbers: Numbers) -> Mapping[str, float]:
    """Number of each group; of sensitivities, the rise of the loss at the largest ratio."""
    if isinstance(numbers, Sensitivities):
        return {name: numbers.rise(name)[-1][1] for name in numbers.groups}
    return numbers


def read_numbers(path: Path | str) -> Numbers:
    """Read a JSON file with a table of sensitivities, or numbers by the name of a group.

    Raises:
        LoadError: if it cannot be read, or holds something else.
    """
    try:
        table = json_fields.read(Path(path)).entries()
        return Sensitivities.load(path) if "trials" in table else {name: one.number() for name, one in table.items()}
    except OSError as fault:
        raise LoadError(f"cannot read {path}{because(fault)}") from fault
    except ValueError as fault:
        what = "holds no object of numbers by group"
        raise json_fields.refused(path, what, fault, 'write one such as {"NAME": 0.5}') from fault


def _require_characters(graph: Graph, forbidden: re.Pattern[str], form: str) -> None:
    """Refuse names and attributes that a format cannot hold, also not by escapes."""
    for name, data in graph.nodes(data=True):
        _require_text(name, [name, *data, *data.values()], forbidden, form)
    for start, end, data in graph.edges(data=True):
        _require_text(f"{start} -> {end}", [*data, *data.values()], forbidden, form)


def _require_text(where: str, values: Iterable[object], forbidden: re.Pattern[str], form: str) -> None:
    for value in values:
        if found := forbidden.search(str(value)):
            raise ExportError(
                f"{where!r} has the character {found[0]!r}, which {form} cannot hold; rename it, or use write_json, "
                "which holds any text"
            )


def _size(data: Mapping[str, Any]) -> str:
    return f"{data['size']} {data['label']}" if data["kind"] == "group" else str(data["shape"])


def _shape(data: Mapping[str, Any]) -> str:
    return "ellipse" if data["kind"] == "group" else "box"


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a node, renamed where Graphviz has its own meaning of the name."""
    return {{"shape": "sizes", "label": "indices"}.get(name, name): value for name, value in data.items()}


def _attributes(data: Mapping[str, Any]) -> str:
    return " [" + ", ".join(f"{name}={_quoted(value)}" for name, value in data.items()) + "]"


def _quoted(value: object) -> str:
    """String of DOT; a backslash remains one, and `\\n` breaks the line of a label."""
    return json.dumps(str(value), ensure_ascii=False)
