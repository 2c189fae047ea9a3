"""Tests of target genai: onnxruntime-genai generates the tokens that ONNX Runtime computes from the same file."""

import json
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from graphprune.errors import ExportError, PackageError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.checks.genai_runtime import PROMPTS, GenaiModel, differences_from_transformers
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.export_folders.folder_check import verify_folder
from graphprune.huggingface import model_folder

Save = Callable[..., Path]

needs_genai = pytest.mark.skipif(
    find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed: pip install 'graphprune[genai]'"
)
SIZE = 260  # every byte and three special tokens
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"


def with_bytes(source: Path, folder: Path) -> Path:
    """A copy of a model's folder with a tokenizer of bytes and a chat template."""
    shutil.copytree(source, folder)
    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    kind: Any = PreTrainedTokenizerFast
    tokenizer = kind(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def export(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return EXPORTERS["genai"].export(source, output, ExportOptions(**options)).facts


def settings(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "genai_config.json").read_text())
    return table


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def llama(saved: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder for genai, exported once."""
    folder = tmp_path_factory.mktemp("genai")
    export(with_bytes(saved("llama", vocab_size=SIZE), folder / "source"), folder / "out")
    return folder / "out"


@needs_genai
def test_it_writes_what_onnx_runtime_computes(llama: Path) -> None:
    report = json.loads((llama / "export_report.json").read_text())
    assert report["equal_tokens"] == 16 * len(PROMPTS) and report["tokens_per_second"] > 0
    assert report["continuations"].keys() == set(PROMPTS) and report["unlike_transformers"] == []
    assert report["versions"].keys() & {"onnxruntime-genai-cuda", "onnxruntime-genai"}
    assert {"model.onnx", "genai_config.json", "tokenizer.json", "chat_template.jinja"} <= {
        p.name for p in llama.iterdir()
    }
    assert "onnxruntime-genai writes the 48 tokens that ONNX Runtime does" in verify_folder(llama).checks


@needs_genai
def test_the_example_of_the_readme(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "exporters" / "README.md").read_text(encoding="utf-8")
    (example,) = (part for part in readme.split("```python\n") if part.startswith("import onnxruntime_genai"))
    exec(example.split("```")[0].replace("FOLDER", str(llama)), {})
    text = json.loads((llama / "export_report.json").read_text())["continuations"][PROMPTS[0]]
    assert capsys.readouterr().out.startswith(PROMPTS[0] + text[:8])


@needs_genai
def test_the_settings_say_what_the_model_is(llama: Path) -> None:
    written = settings(llama)
    model, decoder = written["model"], written["model"]["decoder"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("decoder", SIZE, 64)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2], 2)
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 4, "head_size": 4, "num_attention_heads": 8}
    assert decoder.items() >= {**sizes, "hidden_size": 32, "filename": "model.onnx"}.items()
    assert decoder["inputs"].keys() >= {"input_ids", "attention_mask", "position_ids", "past_key_names"}
    assert (
        written["search"].items() >= {"past_present_share_buffer": False, "max_length": 64, "do_sample": False}.items()
    )


@needs_genai
def test_layers_of_different_heads(uneven: Save, tmp_path: Path) -> None:
    source = with_bytes(uneven(vocab_size=SIZE), tmp_path / "source")
    for dtype in ("fp32", "fp16"):
        assert export(source, tmp_path / dtype, dtype=dtype)["equal_tokens"] == 48
    assert settings(tmp_path / "fp16")["model"]["decoder"]["num_key_value_heads"] == 4
    assert verify_folder(tmp_path / "fp16").max_error is not None


@needs_genai
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_weights_in_fewer_bits(saved: Save, tmp_path: Path, quant: str) -> None:
    source = with_bytes(saved("llama", vocab_size=SIZE, hidden_size=64, num_hidden_layers=1), tmp_path / "source")
    facts = export(source, tmp_path / "out", quant=quant, opset=20)
    assert facts["operators"]["com.microsoft"] == {"MatMulNBits": 8} and facts["equal_tokens"] == 48
    assert verify_folder(tmp_path / "out").checks[-1].startswith("it agrees with the model in")


@needs_genai
@pytest.mark.parametrize(("kind", "layers"), [("opt", "num_hidden_layers"), ("gpt2", "n_layer")])
def test_other_decoders(saved: Save, tmp_path: Path, kind: str, layers: str) -> None:
    source = with_bytes(saved(kind, vocab_size=SIZE, **{layers: 1}), tmp_path / "source")
    assert export(source, tmp_path / "out")["equal_tokens"] == 48


@needs_genai
def test_what_ends_a_text_and_how_it_is_sampled(llama: Path, tmp_path: Path) -> None:
    """Here every text would be over at once, and yet all tokens are compared."""
    first = json.loads((llama / "export_report.json").read_text())["continuations"].values()
    alphabet = json.loads((llama / "tokenizer.json").read_text())["model"]["vocab"]
    ends = sorted({alphabet[character] for text in first for character in text if character in alphabet})
    shutil.copytree(llama.parent / "source", tmp_path / "source")
    proposed = {"eos_token_id": [*ends, 5000], "pad_token_id": -1, "do_sample": True, "temperature": 0.6, "top_p": None}
    change(tmp_path / "source", "generation_config.json", **proposed)
    assert ends and export(tmp_path / "source", tmp_path / "out")["equal_tokens"] == 48
    written = settings(tmp_path / "out")
    assert (written["model"]["eos_token_id"], written["model"]["pad_token_id"]) == (ends, ends[0])
    assert written["search"].items() >= {"do_sample": True, "temperature": 0.6, "top_p": 1.0, "top_k": 50}.items()


@needs_genai
def test_other_tokens_than_those_of_onnx_runtime_are_noticed(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "x")
    table = settings(llama)
    takes = table["model"]["decoder"]["inputs"]
    takes["past_key_names"], takes["past_value_names"] = takes["past_value_names"], takes["past_key_names"]
    (tmp_path / "x" / "genai_config.json").write_text(json.dumps(table))
    with pytest.raises(VerificationError, match=r"after '.*' onnxruntime-genai generates tokens .*, ONNX Runtime on"):
        verify_folder(tmp_path / "x")
    change(tmp_path / "x", "genai_config.json", model={**table["model"], "type": "unheard"})
    with pytest.raises(VerificationError, match="onnxruntime-genai cannot open the model .*unheard; use target onnx"):
        verify_folder(tmp_path / "x")


@needs_genai
def test_what_it_reads_otherwise_is_told(llama: Path, tmp_path: Path) -> None:
    writer, reader = GenaiModel.open(llama), model_folder.tokenizer(llama)
    reader.chat_template = "{{ messages[0]['content'] }}"
    assert differences_from_transformers(writer, reader) == ["its chat template makes 'user: Hi\\n', not 'Hi'"]
    shutil.copytree(llama, tmp_path / "x")
    (tmp_path / "x" / "chat_template.jinja").write_text("{% endfor %}")
    notes = differences_from_transformers(GenaiModel.open(tmp_path / "x"), reader)
    assert notes[0].startswith("it cannot use the chat template: ")


@needs_genai
def test_a_tokenizer_that_it_cannot_read(saved: Save, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="onnxruntime-genai cannot read the tokenizer .*; use target onnx"):
        export(saved("llama", num_hidden_layers=1), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@needs_genai
def test_a_model_that_writes_no_text(saved: Save, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="keeps no keys and values: it is no decoder and writes no text"):
        export(saved("bert", num_hidden_layers=1), tmp_path / "x")


@needs_genai
def test_a_model_of_no_length(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.exporters.targets.genai._LENGTHS", ("max_position_embeddings_elsewhere",))
    with pytest.raises(ExportError, match=r"does not say how many tokens a text may have, .*; add max_position_emb"):
        export(llama.parent / "source", tmp_path / "x")


def test_without_the_package(saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(PackageError, match=r"onnxruntime_genai is not installed: pip install 'graphprune\[genai\]'"):
        export(saved("llama"), tmp_path / "x")


def test_options_that_it_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"target genai cannot be made with static .*; it takes dtype .fp32, fp16"):
        export(tmp_path / "nothing", tmp_path / "x", static={"batch": 1})
