"""Files of dependency graphs hold any name that a model can have."""

import json
import re
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphprune.errors import ExportError
from graphprune.ir.module_names import problem
from graphprune.reports import graph_export

NAMES = st.text(min_size=1).filter(lambda name: not problem(name))
MARKS = st.sampled_from(["</script>", "a&b", "<!--", "]]>", "{{x}}", "%s", "\u202e", "\U0001f600", "; rm"])
STATEMENT = re.compile(r'  "((?:[^"\\]|\\.)*)"(?: -> "((?:[^"\\]|\\.)*)")? \[.*\];')


def graph_of(name: str) -> "nx.MultiDiGraph[str]":
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    graph.add_node(f"{name}.weight", kind="parameter", shape="8x6", elements=48, freedom="exactly")
    graph.add_node(f"{name}.weight:0", kind="group", label="neurons", size=8, exact=True, freedom="exactly", linked="")
    graph.add_edge(f"{name}.weight", f"{name}.weight:0", key=0, dim=0, role="produced")
    return graph


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES | MARKS)
def test_odd_names_in_all_formats(name: str, tmp_path: Path) -> None:
    graph = graph_of(name)
    graph_export.write_graphml(graph, tmp_path / "g.graphml")
    again = nx.read_graphml(tmp_path / "g.graphml", force_multigraph=True)
    assert {node: again.nodes[node] for node in again} == {node: graph.nodes[node] for node in graph}
    graph_export.write_json(graph, tmp_path / "g.json")
    assert {node["id"] for node in json.loads((tmp_path / "g.json").read_text())["nodes"]} == set(graph)
    graph_export.write_dot(graph, tmp_path / "g.dot")
    lines = (tmp_path / "g.dot").read_text(encoding="utf-8").split("\n")[3:-2]
    statements = [STATEMENT.fullmatch(line) for line in lines]
    assert [one and json.loads(f'"{one[1]}"') for one in statements] == [*graph, f"{name}.weight"]


@pytest.mark.parametrize("name", ["a\x01b", "a\0b", "\ud800", "\uffff"])
def test_what_a_format_cannot_hold_is_refused(name: str, tmp_path: Path) -> None:
    graph = graph_of(name)
    with pytest.raises(ExportError, match=r"has the character '.*', which GraphML cannot hold; .* or use write_json"):
        graph_export.write_graphml(graph, tmp_path / "g.graphml")
    if name in ("a\0b", "\ud800"):
        with pytest.raises(ExportError, match="which DOT cannot hold"):
            graph_export.write_dot(graph, tmp_path / "g.dot")
    assert list(tmp_path.iterdir()) == []
    graph_export.write_json(graph, tmp_path / "g.json")
    assert {node["id"] for node in json.loads((tmp_path / "g.json").read_text())["nodes"]} == set(graph)
