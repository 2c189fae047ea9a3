"""What would fail in the middle of a training, or at its end, is refused before it, and nothing is left behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import graphprune as gp
from graphprune.errors import CalibrationError, ExportError, GraphpruneError, LoadError, OptionError
from graphprune.exporters.onnx_tools.onnx_weights import require_known
from graphprune.exporters.targets import onnx

SMALL: dict[str, Any] = {"tokens": "256", "length": 16, "batch": 8, "held_out": 2, "evaluations": 1}


@pytest.fixture
def other(folder: Path, tiny: Any, tmp_path: Path) -> Any:
    """Folder of another kind of model, with the tokenizer of `folder`."""

    def make(kind: str, **changes: Any) -> Path:
        path = tmp_path / kind
        tiny(kind, **changes).save_pretrained(path)
        for file in folder.glob("tokenizer*"):
            shutil.copyfile(file, path / file.name)
        return path

    return make


def refused(tmp_path: Path, match: str, error: type[GraphpruneError], pruned: Path, **options: Any) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(error, match=match):
        gp.heal(pruned, output=tmp_path / "healed", **{**SMALL, **options})
    assert {path.name for path in tmp_path.iterdir()} == before


def test_windows_longer_than_the_positions(other: Any, text: Path, tmp_path: Path) -> None:
    match = r"gpt2 does not run on texts of 80 tokens, of which the greatest is \d+ .*choose shorter windows \(length\)"
    refused(tmp_path, match, CalibrationError, other("gpt2"), data=[text], length=80)


def test_a_teacher_with_fewer_positions(folder: Path, other: Any, text: Path, tmp_path: Path) -> None:
    teacher = other("gpt2")
    match = "the teacher .*gpt2 does not run on texts of 80 tokens"
    refused(tmp_path, match, CalibrationError, folder, data=[text], length=80, teacher=teacher)


def test_a_token_that_the_model_does_not_have(folder: Path, text: Path, tmp_path: Path) -> None:
    larger, longer = tmp_path / "larger", tmp_path / "longer.txt"
    shutil.copytree(folder, larger)
    table = json.loads((larger / "tokenizer.json").read_text())
    table["model"]["vocab"]["new"] = len(table["model"]["vocab"])
    (larger / "tokenizer.json").write_text(json.dumps(table))
    longer.write_text("new " + text.read_text())
    refused(
        tmp_path, "greatest is 60 .*tokenizer belongs to the model", CalibrationError, larger, data=[longer], epochs=1
    )


def test_a_text_without_tokens_among_those_with_a_label(other: Any, tmp_path: Path) -> None:
    data = tmp_path / "labeled.jsonl"
    data.write_text("".join(json.dumps({"text": "w5" * (i != 3), "label": i % 3}) + "\n" for i in range(9)))
    refused(tmp_path, "text 4 of 9, '', has no tokens", CalibrationError, other("bert"), data=[data])


def test_a_model_without_logits(folder: Path, configure: Any, text: Path, tmp_path: Path) -> None:
    transformers.BertModel(configure("bert")).save_pretrained(tmp_path / "plain")
    for file in folder.glob("tokenizer*"):
        shutil.copyfile(file, tmp_path / "plain" / file.name)
    refused(tmp_path, "without logits for every token", CalibrationError, tmp_path / "plain", data=[text])


def test_quantized_numbers(folder: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "quantized"
    shutil.copytree(folder, path)
    weights = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = (weights[name] * 100).to(torch.int8)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, f"stores 1 weights as I8, the first {name}: quantized", LoadError, path, data=[text])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"device": "cuda"}, "there is no device 'cuda' here"),
        ({"rate": float("inf")}, "rate must be a positive number, got inf"),
    ],
)
def test_options(folder: Path, text: Path, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refused(tmp_path, match, OptionError, folder, data=[text], **changes)


def test_sharding_by_accelerate(folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    match = "accelerate is configured for FSDP; healing runs on one device, or on several with all weights on each"
    refused(tmp_path, match, OptionError, folder, data=[text])


def test_files_that_are_none_are_not_copied(folder: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "linked"
    shutil.copytree(folder, path)
    (path / "notes").mkdir()
    for link in (path / "nowhere", path / "notes" / "nowhere"):
        link.symlink_to(tmp_path / "missing")
    gp.heal(path, data=[text], output=tmp_path / "healed", seed=2**40, **SMALL)
    assert (tmp_path / "healed" / "notes").is_dir() and not list((tmp_path / "healed").rglob("nowhere"))


def test_a_graph_has_no_hidden_states_and_an_encoder_decoder_has_those_of_both(
    folder: Path, configure: Any, text: Path, tmp_path: Path
) -> None:
    path = encoder_decoder(folder, configure, tmp_path / "seq2seq")
    dense, options = copy_with_noise(path, tmp_path / "dense"), {"data": [text], **SMALL, "rate": 0.01}
    healing = gp.heal(path, teacher=dense, aim="hidden", output=tmp_path / "healed", **options)
    before, after = healing.held_out
    assert before is not None and after is not None and 0 < after < before


def encoder_decoder(folder: Path, configure: Any, path: Path) -> Path:
    """A random one, with the tokenizer of a folder."""
    transformers.T5ForConditionalGeneration(configure("t5", decoder_start_token_id=0)).save_pretrained(path)
    for file in folder.glob("tokenizer*"):
        shutil.copyfile(file, path / file.name)
    return path


def copy_with_noise(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    torch.manual_seed(1)
    weights = {name: w + 0.1 * torch.randn_like(w) for name, w in load_file(target / "model.safetensors").items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.slow
def test_graphs_of_an_encoder_decoder_and_hidden_states(
    folder: Path, configure: Any, text: Path, tmp_path: Path
) -> None:
    path = encoder_decoder(folder, configure, tmp_path / "seq2seq")
    gp.prune(path, recipe="magnitude", sparsity=0.1, destination="free", output=tmp_path / "graph")
    shutil.rmtree(tmp_path / "graph" / "onnx", ignore_errors=True)
    match = "output_hidden_states, as models of transformers do, and that of GraphModule"
    refused(tmp_path, match, OptionError, tmp_path / "graph", data=[text], teacher=path, aim="hidden")
    before, after = gp.heal(tmp_path / "graph", data=[text], output=tmp_path / "healed", **SMALL).held_out
    assert before is not None and after is not None and after <= before


def test_weights_that_an_onnx_file_does_not_tell_apart(tmp_path: Path) -> None:
    program = gp.trace(
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), (torch.ones(3, 4),)
    )
    onnx.export_program(program, tmp_path / "onnx")
    require_known(tmp_path / "onnx", dict(program.weights))
    with pytest.raises(ExportError, match="does not store 0.weight as it is"):
        require_known(tmp_path / "onnx", {**program.weights, "0.weight": torch.ones(8, 4)})
    with pytest.raises(ExportError, match="has the values of .* and of "):
        twice = {f"copy.{name}": weight for name, weight in program.weights.items()}
        require_known(tmp_path / "onnx", {**twice, **{f"other.{name}": w for name, w in program.weights.items()}})
