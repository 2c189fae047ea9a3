"""Programs as files that torch itself reads."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.errors import ExportError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.targets import pt2
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program

Narrow = Callable[..., Program]


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"intermediate_size": 20}),
    ("resnet", {"hidden_sizes": [8, 12]}),
]


@pytest.mark.parametrize(("kind", "changes"), CHANGES)
def test_it_loads_and_takes_other_shapes(narrowed: Narrow, tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    program = narrowed(kind, **changes)
    report = pt2.save(program, tmp_path / "x.pt2")
    assert report.facts["error"]["relative"] < 1e-6
    ((name, value),) = program.inputs[1].items()
    other = value[:1].repeat(3, *[1] * (value.dim() - 1))
    other = other[:, :4] if kind == "llama" else other
    loaded = torch.export.load(tmp_path / "x.pt2").module()
    assert torch.allclose(loaded(**{name: other}).logits, program.module()(**{name: other}).logits, atol=1e-6)


def test_positional_inputs(tmp_path: Path) -> None:
    program = trace(nn.Linear(3, 4), (torch.randn(2, 3),))
    pt2.save(program, tmp_path / "x.pt2")
    assert torch.export.load(tmp_path / "x.pt2").module()(torch.randn(5, 3)).shape == (5, 4)


def test_a_folder_becomes_a_file_with_a_cache(saved: Callable[..., Path], tmp_path: Path) -> None:
    report = EXPORTERS["pt2"].export(saved("llama", num_hidden_layers=1), tmp_path / "x.pt2")
    assert report.facts["parity"]["torch.export"]["worst"] < 1e-5
    assert "batch 1, 5 tokens, decode step 2" in report.facts["parity"]["torch.export"]["cases"]


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_the_command_says_how_near_it_is(saved: Callable[..., Path], tmp_path: Path, json: list[str]) -> None:
    source = str(saved("resnet"))
    done = CliRunner().invoke(app, ["export", source, "--target", "pt2", "-o", str(tmp_path / "x.pt2"), *json])
    assert done.exit_code == 0, done.output
    assert "torch.export" in done.output and (tmp_path / "x.pt2").is_file()


def test_the_graph_of_a_network_of_ones_own(images: Path, tmp_path: Path) -> None:
    made = gp.export(images, target="pt2", output=tmp_path / "x.pt2")
    assert made.facts["parity"]["torch.export"]["worst"] < 1e-6
    loaded, pixels = torch.export.load(tmp_path / "x.pt2").module(), torch.randn(5, 3, 8, 8)
    assert torch.equal(loaded(pixels), gp.load(images).module()(pixels))


def test_the_graph_of_a_decoder_has_its_cache_in_onnx_only(decoder: Path, tmp_path: Path) -> None:
    shutil.copytree(decoder, tmp_path / "free" / "onnx")
    (tmp_path / "free" / "model.pt2").write_bytes(b"not read")
    with pytest.raises(ExportError, match="graph of a decoder, whose cache is only in the ONNX files .*; use a target"):
        gp.export(tmp_path / "free", target="pt2", output=tmp_path / "x.pt2")
    assert not (tmp_path / "x.pt2").exists()


def test_the_name_must_say_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"x\.onnx does not end in \.pt2"):
        pt2.save(trace(nn.Linear(3, 4), (torch.randn(2, 3),)), tmp_path / "x.onnx")


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    program = trace(nn.Linear(3, 4), (torch.randn(2, 3),))
    (tmp_path / "x.pt2").write_text("precious")
    with pytest.raises(ExportError, match="exists already"):
        pt2.save(program, tmp_path / "x.pt2")
    assert (tmp_path / "x.pt2").read_text() == "precious"
    pt2.save(program, tmp_path / "x.pt2", force=True)
    torch.export.load(tmp_path / "x.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt2"]
