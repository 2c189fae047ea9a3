"""The dependency structure as a graph of networkx, and as files that others read."""

import json
import shutil
import subprocess
from math import inf
from pathlib import Path

import networkx as nx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from graphprune.axes.groups import Dependencies
from graphprune.cli.commands import app
from graphprune.display.color_scale import SHADES
from graphprune.errors import LoadError, RegistryError
from graphprune.frontends.modules import trace
from graphprune.passes.analysis.find_groups import analyze
from graphprune.planning.sensitivity_table import Sensitivities, Trial
from graphprune.reports import graph_export


class Branch(nn.Module):
    """A stream of width 6, and a wider path beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.head(x + self.down(torch.relu(self.up(x))))
        return y


def make() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
    """What `inspect` takes as a model."""
    return Branch().eval(), (torch.randn(4, 3),), {}


@pytest.fixture(scope="module")
def found() -> Dependencies:
    module, args, _ = make()
    return analyze(trace(module, args))


def test_every_node_says_what_it_is(found: Dependencies) -> None:
    graph = found.to_networkx()
    assert graph.nodes["up.weight:0"] == {
        "kind": "group", "label": "neurons", "freedom": "exactly",
        "type": "up.weight:0", "layer": "", "size": 8, "least": 1,
        "exact": True, "rescaled": False, "linked": "", "places": 3, "parameters": 6 + 1 + 6, "macs": 12,
        "kv_cache_bytes": 0,
    }  # fmt: skip
    assert graph.nodes["up.weight"] == {"kind": "parameter", "shape": "8x6", "elements": 48, "freedom": "exactly"}
    assert graph.nodes["head.bias"] == {"kind": "parameter", "shape": "2", "elements": 2, "freedom": "not at all"}


def test_edges_run_as_the_data_does(found: Dependencies) -> None:
    graph = found.to_networkx()
    edges = {(start, end): data for start, end, data in graph.edges(data=True) if "up.weight:0" in (start, end)}
    assert edges == {
        ("up.weight", "up.weight:0"): {"dim": 0, "role": "produced"},
        ("up.weight:0", "up.bias"): {"dim": 0, "role": "carried"},
        ("up.weight:0", "down.weight"): {"dim": 1, "role": "contracted"},
    }


def test_a_tensor_may_hold_a_group_twice() -> None:
    class Square(nn.Module):
        """A bilinear form, whose kernel is contracted with one value on both sides."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.form = nn.Linear(3, 6), nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            z: Tensor = (torch.matmul(y, self.form) * y).sum(-1)
            return z

    found = analyze(trace(Square(), (torch.randn(4, 3),)))
    graph = found.to_networkx()
    (group,) = found.groups
    dims = sorted(data["dim"] for *ends, data in graph.edges(data=True) if set(ends) == {group.name, "form"})
    assert dims == sorted(place.dim for place in group.places if place.parameter == "form") == [0, 1]


def test_the_files_hold_the_graph(found: Dependencies, tmp_path: Path) -> None:
    graph = found.to_networkx()
    graph_export.write_graphml(graph, tmp_path / "g.graphml")
    graph_export.write_json(graph, tmp_path / "g.json")
    again = nx.read_graphml(tmp_path / "g.graphml", force_multigraph=True)
    assert {name: again.nodes[name] for name in again} == {name: graph.nodes[name] for name in graph}
    assert sorted(map(str, again.edges(data=True))) == sorted(map(str, graph.edges(data=True)))
    loaded = nx.node_link_graph(json.loads((tmp_path / "g.json").read_text()), edges="edges")
    assert nx.utils.graphs_equal(loaded, graph)


def test_graphviz_reads_the_dot_file(found: Dependencies, tmp_path: Path) -> None:
    graph_export.write_dot(found.to_networkx(), tmp_path / "g.dot")
    text = (tmp_path / "g.dot").read_text()
    assert 'label="up.weight\\n8x6"' in text and 'role="produced"' in text
    program = shutil.which("dot")
    if program is None:
        pytest.skip("Graphviz is not installed: there is no program dot")
    done = subprocess.run([program, "-Tplain", tmp_path / "g.dot"], capture_output=True, text=True, check=True)
    assert "up.weight:0" in done.stdout


def test_groups_are_colored_from_least_to_greatest(found: Dependencies) -> None:
    graph = found.to_networkx()
    stream = next(group.name for group in found.groups if group.size == 6)
    painted = graph_export.colored(graph, {"up.weight:0": 0.25, stream: 4})
    assert painted.nodes["up.weight:0"]["fillcolor"] == SHADES[0]
    assert painted.nodes[stream]["fillcolor"] == SHADES[-1]
    assert painted.nodes[stream]["value"] == 4.0
    assert "fillcolor" not in graph.nodes[stream], "the graph that was given stays as it was"


@pytest.mark.parametrize(
    ("numbers", "error", "words"),
    [
        ({"up.weight": 1.0}, RegistryError, "no group 'up.weight'"),
        ({"up.weight:0": inf}, LoadError, "up.weight:0 is inf"),
    ],
)
def test_wrong_numbers_are_named(
    found: Dependencies, numbers: dict[str, float], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        graph_export.colored(found.to_networkx(), numbers)


@pytest.mark.parametrize("text", ["[1, 2]", '{"a": "much"}', "{"])
def test_a_file_that_holds_no_numbers_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(LoadError, match="numbers by group"):
        graph_export.read_numbers(tmp_path / "s.json")


def test_inspect_writes_and_colors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "branch.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "s.json").write_text('{"up.weight:0": 0.5}')
    done = CliRunner().invoke(
        app, ["inspect", "branch:make", "--dot", "g.dot", "--graph-json", "g.json", "--sensitivity", "s.json"]
    )
    assert done.exit_code == 0, done.output
    assert SHADES[0] in (tmp_path / "g.dot").read_text()
    assert '"value": 0.5' in (tmp_path / "g.json").read_text()
    assert "most coupled: 6 hidden size, " in done.output and ", in 6 dimensions of tensors" in done.output


def test_a_table_of_sensitivities_colors_by_the_deepest_cut(tmp_path: Path) -> None:
    trials = tuple(Trial("a", 8, width, 1 - width / 8, False, 2.0 + 1 / width) for width in (4, 2))
    Sensitivities("f", 2.0, "nats a token", "magnitude", "none", trials).save(tmp_path / "s.json")
    assert graph_export.by_group(graph_export.read_numbers(tmp_path / "s.json")) == {"a": 0.5}
