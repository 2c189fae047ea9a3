"""Programs that passes made become folders, as those of `prune` do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import graphprune as gp
from graphprune.errors import ExportError, LoadError, VerificationError
from graphprune.workflows.free_destination import _cut_alike

ONE = {"num_hidden_layers": 1}
Saved = tuple[Path, dict[str, float]]


@pytest.fixture(scope="module")
def decoder_folder(saved: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The free folder of a decoder that nothing cut, and the errors of saving it; tests only read it."""
    folder = tmp_path_factory.mktemp("free") / "x"
    return folder, dict(gp.save(gp.load(saved("llama", **ONE)), output=folder))


def test_a_network_of_ones_own(images: Path) -> None:
    program = gp.load(images)
    small = gp.apply(program, gp.plan(program, sparsity=0.2))
    folder, pixels = images.parent / "smaller", torch.randn(3, 3, 8, 8)
    errors = dict(gp.save(small, output=folder))
    assert errors.keys() == {"reloaded .pt2 and rewritten graph", "ONNX and graph"} and max(errors.values()) < 1e-5
    assert gp.verify_folder(folder).parameters == small.count() < program.count()
    loaded = gp.load(folder)
    torch.testing.assert_close(loaded.module()(pixels), small.module()(pixels))
    damaged = images.parent / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "onnx" / "model.onnx").write_bytes(b"")
    with pytest.raises(VerificationError):
        gp.verify_folder(damaged)


def test_a_model_of_transformers(saved: Callable[..., Path], tmp_path: Path) -> None:
    program = gp.load(saved("llama", **ONE))
    small = gp.apply(program, gp.plan(program, sparsity=0.1, destination="stock"))
    ((what, worst),) = gp.save(small, output=tmp_path / "x", destination="stock")
    assert what == "reloaded folder and rewritten graph" and worst < 1e-5
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "x").num_parameters() == small.count()


def test_a_decoder_with_its_cache_in_onnx(decoder_folder: Saved) -> None:
    folder, errors = decoder_folder
    assert max(errors.values()) < 1e-5 and "graph with cache and rewritten graph" in errors
    assert gp.verify_folder(folder).parameters == gp.load(folder).count()


@pytest.mark.slow
def test_a_cut_decoder_with_its_cache_in_onnx(saved: Callable[..., Path], tmp_path: Path) -> None:
    program = gp.load(saved("llama", **ONE))
    small = gp.apply(program, gp.plan(program, sparsity=0.2))
    errors = dict(gp.save(small, output=tmp_path / "x"))
    assert max(errors.values()) < 1e-5 and "graph with cache and rewritten graph" in errors
    assert gp.verify_folder(tmp_path / "x").parameters == small.count()
    with pytest.raises(ExportError, match="cannot be repeated on the model with its cache: .*cut it in one step"):
        gp.save(gp.apply(small, gp.plan(small, sparsity=0.2)), output=tmp_path / "y")


def test_a_second_cut_cannot_be_repeated_on_the_model_with_its_cache() -> None:
    program = gp.trace(nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)), (torch.randn(3, 4),))
    small = gp.apply(program, gp.plan(program, sparsity=0.2))
    assert _cut_alike(program, small).count() == small.count()
    with pytest.raises(ExportError, match="cannot be repeated on the model with its cache: .*cut it in one step"):
        _cut_alike(program, gp.apply(small, gp.plan(small, sparsity=0.2)))


def test_what_is_made_of_a_saved_decoder_knows_its_settings(decoder_folder: Saved, tmp_path: Path) -> None:
    folder, _ = decoder_folder
    for target in ("onnx-mobile", "web"):
        made = gp.export(folder, target=target, output=tmp_path / target)
        config = json.loads((tmp_path / target / "config.json").read_text())
        assert config["model_type"] == "llama" and (tmp_path / target / "tokenizer.json").is_file()
        assert target == "web" or made.facts["options"]["static"] == {"batch": 1, "sequence": 1, "past": 63}
    assert json.loads((tmp_path / "web" / "web.json").read_text())["eos_token_ids"] == [2]
    for output in (folder / "onnx", folder):
        with pytest.raises(ExportError, match="contains the source .*; choose another output"):
            gp.export(folder, target="web", output=output, force=True)


def test_an_encoder_by_the_names_of_its_inputs(saved: Callable[..., Path], tmp_path: Path) -> None:
    gp.save(gp.load(saved("bert", num_hidden_layers=1)), output=tmp_path / "x")
    made = gp.export(tmp_path / "x", target="pt2", output=tmp_path / "x.pt2")
    assert made.facts["parity"]["torch.export"]["worst"] < 1e-5
    inputs = gp.export(tmp_path / "x", target="onnx", quant="int8", output=tmp_path / "y").facts["sizes"]
    assert inputs["input_ids"] == ["batch_size", "sequence_length"]


def test_sizes_that_are_fixed_in_the_graph_stay_so(tmp_path: Path) -> None:
    """An example of one image makes a graph for one image at a time."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    gp.save(gp.trace(network, (torch.randn(1, 3, 8, 8),)), output=tmp_path / "x")
    made = gp.export(tmp_path / "x", target="pt2", output=tmp_path / "x.pt2")
    assert list(made.facts["parity"]["torch.export"]["cases"])
    made = gp.export(tmp_path / "x", target="onnx-mobile", output=tmp_path / "y")
    assert next(iter(made.facts["sizes"].values())) == [1, 3, 8, 8]


def test_a_damaged_graph_is_told(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "x")
    (tmp_path / "x" / "model.pt2").write_bytes((images / "model.pt2").read_bytes()[:1000])
    with pytest.raises(LoadError, match="is truncated, corrupt or of another version of torch"):
        gp.export(tmp_path / "x", target="pt2", output=tmp_path / "x.pt2")
    shutil.rmtree(tmp_path / "x" / "onnx")
    with pytest.raises(ExportError, match="takes the graph itself: executorch, litert, pt2"):
        gp.export(tmp_path / "x", target="web", output=tmp_path / "y")


def test_what_cannot_be_saved(saved: Callable[..., Path], tmp_path: Path) -> None:
    program = gp.trace(nn.Linear(3, 4), (torch.randn(2, 3),))
    with pytest.raises(ExportError, match="no destination 'phone'; choose one of stock, per-layer, free"):
        gp.save(program, output=tmp_path / "x", destination="phone")
    with pytest.raises(ExportError):
        gp.save(program, output=tmp_path / "x", destination="stock")
    folder = saved("llama")
    with pytest.raises(ExportError, match="contains the source .*; choose another output"):
        gp.save(gp.load(folder), output=folder, force=True)
    (tmp_path / "y").mkdir()
    with pytest.raises(ExportError, match="exists already"):
        gp.save(program, output=tmp_path / "y")
    assert not (tmp_path / "x").exists() and list((tmp_path / "y").iterdir()) == []
