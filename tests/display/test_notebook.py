"""What a notebook shows: tables in the place of text, and bars that come and go."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.planning.plan import Plan
from graphprune.planning.sensitivity_table import Sensitivities, Trial
from tests.reports.test_report_page import HOSTILE, alone, example

ROOT = Path(__file__).parents[2]


def test_dependencies_show_what_can_be_cut(tiny: Callable[..., nn.Module], inputs: Callable[[str], Any]) -> None:
    found = gp.analyze(gp.trace(tiny("llama"), (), inputs("llama")))
    text = alone(found._repr_html_()).text
    assert f"{found.freedom.total:,} parameters, {len(found.groups)} groups" in text
    assert "can be cut exactly" in text and "model.layers.*.mlp.gate_proj.weight:0 2 40 exactly" in text


class Odd(nn.Module):
    """A module with a name that means something in HTML, and an operator without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"<b>&": nn.Linear(4, 6), "out": nn.Linear(6, 2)})

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers["out"](torch.relu(self.layers["<b>&"](x)))


def test_names_are_escaped_everywhere() -> None:
    program = gp.trace(Odd(), (torch.randn(3, 4),))
    assert "layers.<b>&.weight" in alone(gp.analyze(program)._repr_html_()).text
    assert "layers.<b>&.weight" in alone(gp.plan(program, ratio=0.5)._repr_html_()).text
    trials = (Trial(HOSTILE, 4, 2, 0.5, False, 2.0), Trial(HOSTILE, 4, 2, 0.5, True, 1.0))
    text = alone(Sensitivities(HOSTILE, 1.5, HOSTILE, HOSTILE, HOSTILE, trials)._repr_html_()).text
    assert text.count("<script>alert('x')</script>") == 4 and "+0.5000" in text and "-0.5000" in text
    hostile = Plan(HOSTILE, {f"{HOSTILE}:0": ((0, 2),)}, {}, {HOSTILE: HOSTILE}, (HOSTILE,), {HOSTILE: 3})
    assert alone(hostile._repr_html_()).text.count("<script>alert('x')</script>") == 6


def test_plans_show_widths_blocks_and_ranks() -> None:
    groups = {"a.0.up:0": ((0, 1, 2),), "a.1.up:0": ((0,),)}
    text = alone(Plan("cafe", groups, {}, {"score": "fasp"}, ("a.7",), {"w": 3, "v": 5})._repr_html_()).text
    for words in (
        "the model cafe",
        "score fasp",
        "a.*.up:0 2 1 to 3",
        "Dropped: a.7",
        "2 weights become factors of ranks 3 to 5",
    ):
        assert words in text
    assert "become factors" not in alone(Plan("cafe", {}, {})._repr_html_()).text
    assert "folder, pruned" in alone(example()._repr_html_()).text


IMPORTS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from torch import nn
import graphprune as gp
"""
WORK = """
x = torch.randn(8, 4)
program = gp.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (x,))
found = gp.sensitivity(program, batches=[((torch.randn(8, 4),), {}) for _ in range(4)], ratios=(0.5,))
gp.analyze(program)
"""


def test_a_notebook_shows_bars_and_tables() -> None:
    """A real kernel runs a cell: a bar of letters (there are no widgets) comes and goes, and the table remains."""
    client = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (IMPORTS, WORK)])
    client.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert not notebook.cells[0].outputs, "no widget is missed"
    outputs = notebook.cells[1].outputs
    drawn = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert re.search(r"\rtrying groups: +\d+%\|.*\| \d/2 \[", drawn), drawn
    assert not drawn.rpartition("\r")[0].rpartition("\r")[2].strip() and drawn.endswith("\r"), "nothing of it is left"
    shown = [output["data"].get("text/html", "") for output in outputs if "data" in output]
    assert len(shown) == 1 and "can be cut exactly" in shown[0]
