"""Programs of any module as ONNX: positions that it counts itself, sizes that it remembers, inputs without a tensor."""

from importlib import import_module
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.exporters.contract import ExportReport
from graphprune.exporters.targets.onnx import export_program
from graphprune.frontends.modules import trace


class Rotated(nn.Module):
    """Heads rotated by the index of their token."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 16), nn.Linear(16, 4)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape
        heads = self.embed(tokens).view(batch, length, 4, 4).transpose(1, 2)
        angles = torch.arange(length)[None, :, None] * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        cosines, sines = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        half = torch.cat((-heads[..., 2:], heads[..., :2]), dim=-1)
        rotated = heads * cosines + half * sines
        output: Tensor = self.head(rotated.transpose(1, 2).reshape(batch, length, 16))
        return output


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    program = trace(Rotated().eval(), (torch.randint(9, (2, 5)),))
    return export_program(program, tmp_path_factory.mktemp("rotary") / "out")


def test_its_tables_have_a_row_for_every_text(report: ExportReport) -> None:
    assert report.facts["parity"]["CPUExecutionProvider"]["worst"] < 1e-5  # with batches that were not traced
    assert report.facts["operators"]["ai.onnx"]["RotaryEmbedding"] == 1
    assert report.facts["operators"]["ai.onnx"]["Expand"] == 2


class Remembers(nn.Module):
    """Keeps the shape of the last call, as detectors do that cache their anchors."""

    shape: torch.Size | None = None

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        if self.shape != features.shape:
            self.anchors, self.shape = torch.ones(features.shape[2:]), features.shape
        return features * self.anchors


def test_a_batch_that_the_module_remembers_is_static_in_the_file(tmp_path: Path) -> None:
    module, images = Remembers().eval(), torch.randn(2, 3, 4, 4)
    module(images)
    path = Path(export_program(trace(module, (images,)), tmp_path / "out").output) / "model.onnx"
    sizes = onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in sizes] == [2, 3, 4, 4]


class Optional(nn.Module):
    """Takes steps of a batch, a mask that may be absent, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, values: Tensor, steps: Tensor, mask: Tensor | None = None, scaled: bool = False) -> Tensor:
        output: Tensor = self.body(values if mask is None else values * mask) + steps[:, None]
        return output * 2 if scaled else output


@pytest.mark.parametrize("positional", [0, 1, 4])
def test_inputs_that_are_no_tensors_are_constants_of_the_file(positional: int, tmp_path: Path) -> None:
    inputs = {"values": torch.randn(2, 4), "steps": torch.tensor([3, 7]), "mask": None, "scaled": True}
    args, names = tuple(inputs.values())[:positional], list(inputs)[positional:]
    program = trace(Optional().eval(), args, {name: inputs[name] for name in names})
    report = export_program(program, tmp_path / "out")
    assert report.facts["parity"]["CPUExecutionProvider"]["worst"] < 1e-5
    graph = onnx.load(str(tmp_path / "out" / "model.onnx")).graph
    assert [value.name for value in graph.input] == ["values", "steps"]


class Experts(nn.Module):
    """Rows sorted by expert, and the product of each with the matrix of its expert."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 3))

    def forward(self, rows: Tensor) -> Tensor:
        experts, order = rows[:, :4].argmax(1).sort()
        ends = torch.histc(experts.float(), 4, 0, 3).cumsum(0, dtype=torch.int32)
        output: Tensor = torch.ops.transformers.grouped_mm_fallback(rows[order], self.weight, ends)
        return output


def test_the_products_of_a_mixture_of_experts_are_saved_loaded_and_exported(tmp_path: Path) -> None:
    import_module("transformers.integrations.moe")
    rows = torch.randn(5, 6)
    program = trace(Experts().eval(), (rows,))
    gp.save(program, output=tmp_path / "saved")
    assert torch.equal(gp.load(tmp_path / "saved").module()(rows), program.module()(rows))
    report = gp.export(tmp_path / "saved", target="onnx", output=tmp_path / "out")
    assert "model.onnx" in report.files  # which agreed with the program when it was saved


class Described(nn.Module):
    """Tokens of a text, of which some are padding, and an image."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.look = nn.Embedding(9, 3), nn.Conv2d(3, 3, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image: Tensor) -> Tensor:
        output: Tensor = self.words(input_ids) * attention_mask[..., None]
        seen: Tensor = self.look(image).mean((2, 3))[:, None]
        return output + seen


def test_an_image_beside_a_padded_text_has_the_shape_of_an_image(tmp_path: Path) -> None:
    mask = torch.ones(2, 5, dtype=torch.long)
    inputs = {"input_ids": torch.randint(9, (2, 5)), "attention_mask": mask, "image": torch.randn(2, 3, 4, 4)}
    report = export_program(trace(Described().eval(), (), inputs), tmp_path / "out")
    assert report.facts["parity"]["CPUExecutionProvider"]["worst"] < 1e-5


class Chunked(nn.Module):
    """Runs long texts by other code than short ones."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, values: Tensor) -> Tensor:
        output: Tensor = self.body(values)
        return output if values.shape[0] > 8 else output.flip(0)


def test_inputs_that_the_capture_refuses_are_named_and_the_example_is_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = export_program(trace(Chunked().eval(), (torch.randn(12, 4),)), tmp_path / "out")
    assert [*report.facts["parity"]["CPUExecutionProvider"]["cases"]] == ["the traced inputs"]
    assert "expected values.size(0)" in caplog.text and "the exported file does not refuse such inputs" in caplog.text
