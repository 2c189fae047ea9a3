"""GGUF files: read back, read by transformers, and run by llama.cpp where that is installed."""

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import gguf
import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

import graphprune as gp
from graphprune.errors import ExportError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.export_folders.folder_check import verify_folder
from graphprune.exporters.gguf_tools.gguf_file import count_finite
from graphprune.exporters.gguf_tools.gguf_runtime import open_file
from graphprune.exporters.gguf_tools.gguf_vocabulary import vocabulary
from graphprune.frontends import gguf_models as frontend
from graphprune.huggingface import model_folder, per_layer
from tests.converted import alike

VOCABULARY = 320
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
HEAD = {"head_dim": 8}
KINDS = {
    "llama": ("Llama", HEAD),
    "mistral": ("Mistral", {**HEAD, "sliding_window": 32}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {**HEAD, "num_key_value_heads": 1}),
    "gemma3": ("Gemma3Text", {**HEAD, "query_pre_attn_scalar": 8, "num_hidden_layers": 7, "sliding_window": 4}),
}
ROTARY = {f"{kind}_attention": {"rope_type": "default", "rope_theta": 1e6} for kind in ("full", "sliding")}
NARROW = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
WIDTHS: dict[int | str, dict[str, Any]] = {0: {"intermediate_size": 40}, 1: NARROW}
TEXT = ["the quick brown fox jumps over the lazy dog, and the dog sleeps", "it's 1905; we'll see 26 of them"] * 9
RUNS = find_spec("llama_cpp") is not None

Build = Callable[..., Path]


def byte_level(*steps: Any, **model: Any) -> Any:
    """A small tokenizer of bytes and merges."""
    made = Tokenizer(models.BPE(**model))
    made.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False,
    ))  # fmt: skip
    return fast(made, "<|end|>")


def with_pieces(space_always: bool = True) -> Any:
    """A small tokenizer of pieces with a mark for spaces, and bytes for all else."""
    made = Tokenizer(models.BPE())
    if space_always:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=50, show_progress=False))
    table = json.loads(made.to_str())["model"]
    first = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = {text: number for number, text in enumerate([*first, *sorted(table["vocab"], key=table["vocab"].get)])}
    merges = [tuple(pair) for pair in table["merges"]]
    made.model = models.BPE(words, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    made.add_special_tokens(["<unk>", "<s>"])
    return fast(made, "<s>")


def fast(made: Tokenizer, end: str) -> Any:
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=made, bos_token=end, eos_token=end, chat_template="{{ messages }}")


def default() -> Any:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """The folder of a random model with a tokenizer of bytes."""

    def make(kind: str, tokenizer: Callable[[], Any] = default, **changes: Any) -> Path:
        name, own = KINDS[kind]
        config = getattr(transformers, f"{name}Config")(**{**SIZES, **own, **changes})
        config.architectures = [architecture := f"{name.removesuffix('Text')}ForCausalLM"]
        torch.manual_seed(0)
        uneven = "per_layer_config" in changes
        model = per_layer.build(config) if uneven else getattr(transformers, architecture)(config)
        randomise(model)
        folder = tmp_path_factory.mktemp(kind) / "model"
        model.save_pretrained(folder)
        model.config.architectures = [architecture]  # not the class that builds layers one by one
        model.config.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return folder

    yield make


def randomise(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1 if "norm" in name else 0.15)


def uneven(build: Build, kind: str = "llama", **changes: Any) -> Path:
    return build(kind, per_layer_config=WIDTHS, allow_global_per_layer_attribute_access=True, **changes)


def export(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return EXPORTERS["gguf"].export(source, output, ExportOptions(**options)).facts


def fields(output: Path) -> dict[str, Any]:
    return {key: entry.contents() for key, entry in gguf.GGUFReader(output / "model.gguf").fields.items()}


def agreed(facts: dict[str, Any], bound: float = 1e-4) -> None:
    """Check the agreement of llama.cpp with the model, if it ran."""
    assert bool(facts["parity"]) is RUNS
    if RUNS:
        ran = facts["parity"]["llama.cpp"]
        assert ran["worst"] < bound and ran["greedy"] == {"tokens": 16, "equal": 16}


def test_a_file_names_its_source_and_license(build: Build, tmp_path: Path) -> None:
    source = Path(shutil.copytree(build("llama"), tmp_path / "my-model"))
    (source / "README.md").write_text("---\nlicense: mit\nbase_model: some/base\n---\n")
    export(source, tmp_path / "x")
    general = {key: value for key, value in fields(tmp_path / "x").items() if key.startswith("general.")}
    assert (general["general.name"], general["general.license"]) == ("my-model", "mit")
    assert general["general.base_model.0.repo_url"] == "https://huggingface.co/some/base"


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model(build: Build, tmp_path: Path, kind: str) -> None:
    facts = export(build(kind), tmp_path / "x")
    agreed(facts, 3e-3 if kind.startswith("gemma") else 1e-4)
    assert facts["error"] == {"F32": 0.0}
    assert facts["architecture"] == {"mistral": "llama"}.get(kind, kind)
    assert facts["tokenizer"]["kind"] == "gpt2"
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["export_report.json", "model.gguf"]
    found = verify_folder(tmp_path / "x")
    assert found.kind == "gguf" and len(found.checks) == 2 + RUNS and found.parameters == facts["parameters"]


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_what_was_written(build: Build, tmp_path: Path, tied: bool) -> None:
    """The project's own frontend is another reader, which turns the order of the heads back by itself."""
    source = build("llama", tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 5e4})
    export(source, tmp_path / "x")
    assert ("output.weight" in names(tmp_path / "x")) is not tied
    again, model = model_folder.module(frontend.folder(tmp_path / "x" / "model.gguf")), model_folder.module(source)
    ids = torch.arange(21).view(3, 7)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    assert again.config.rope_parameters["rope_theta"] == 5e4
    text = "the 1905 dog's"
    assert model_folder.tokenizer(frontend.folder(tmp_path / "x" / "model.gguf"))(text) == model_folder.tokenizer(
        source
    )(text)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])  # which transformers reads back
def test_a_file_is_read_back_a_tensor_at_a_time(build: Build, tmp_path: Path, kind: str) -> None:
    export(build(kind), tmp_path / "x", dtype="fp16")
    alike(tmp_path / "x" / "model.gguf", tmp_path)


def names(output: Path) -> set[str]:
    return {entry.name for entry in gguf.GGUFReader(output / "model.gguf").tensors}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_layers_of_different_widths(build: Build, tmp_path: Path, kind: str) -> None:
    facts = export(uneven(build, kind, head_dim=8), tmp_path / "x")
    agreed(facts)
    found = fields(tmp_path / "x")
    assert found["general.architecture"] == facts["architecture"] == "deci"
    assert found["deci.attention.head_count"] == [8, 4] and found["deci.attention.head_count_kv"] == [4, 2]
    assert found["deci.feed_forward_length"] == [40, 64] and found["deci.attention.key_length"] == 8
    assert facts["error"] == {"F32": 0.0}


def test_what_one_architecture_lacks_another_may_have(build: Build, tmp_path: Path) -> None:
    """Query heads of qwen2 must have the hidden size in llama.cpp; those of deci need not, and may have biases."""
    facts = export(build("qwen2", head_dim=8, num_attention_heads=4, num_key_value_heads=2), tmp_path / "x")
    agreed(facts)
    assert facts["architecture"] == "deci"


def test_biases_and_scaled_positions(build: Build, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    source = build("llama", attention_bias=True, mlp_bias=True, rope_parameters=rope, max_position_embeddings=128)
    agreed(export(source, tmp_path / "x"))
    assert {"rope_freqs.weight", "blk.0.attn_k.bias", "blk.1.ffn_down.bias"} <= names(tmp_path / "x")


@pytest.mark.parametrize(
    ("options", "types", "worst"),
    [
        ({"dtype": "fp16"}, {"F32": 5, "F16": 15}, 5e-4),
        ({"quant": "int8"}, {"F32": 5, "Q8_0": 15}, 6e-3),
        ({"quant": "int4"}, {"F32": 5, "Q8_0": 1, "Q4_0": 14}, 0.13),
    ],
)
def test_fewer_bits(build: Build, tmp_path: Path, options: Any, types: dict[str, int], worst: float) -> None:
    facts = export(build("llama", tie_word_embeddings=True), tmp_path / "x", **options)
    assert facts["types"] == types
    assert worst / 20 < max(facts["error"].values()) < worst
    assert facts["error"]["F32"] == 0.0
    assert verify_folder(tmp_path / "x").max_error is not None


def test_rows_that_are_no_multiple_of_a_block_are_kept(build: Build, tmp_path: Path) -> None:
    facts = export(build("llama", intermediate_size=40, tie_word_embeddings=True), tmp_path / "x", quant="int4")
    assert facts["types"] == {"F32": 5, "Q8_0": 1, "Q4_0": 12, "F16": 2}
    assert (
        "2 of 15 matrices keep fp16: their rows of 40 are no multiple of 32; prune to multiples of 32" in facts["notes"]
    )


def test_a_sliding_window_ends_the_context(build: Build, tmp_path: Path) -> None:
    facts = export(build("mistral"), tmp_path / "x")
    assert fields(tmp_path / "x")["llama.context_length"] == 32
    assert facts["notes"][0].startswith("the context is 32 tokens, the sliding window, not 64")


def test_what_a_file_says_about_tokens(build: Build, tmp_path: Path) -> None:
    export(build("llama"), tmp_path / "x")
    found = fields(tmp_path / "x")
    assert found["tokenizer.ggml.tokens"][0] == "<|end|>" and found["tokenizer.ggml.tokens"][-1] == "[PAD319]"
    assert [found["tokenizer.ggml.token_type"][i] for i in (0, 1, -1)] == [3, 1, 5]
    assert found["tokenizer.ggml.merges"] and found["tokenizer.chat_template"] == "{{ messages }}"
    assert found["tokenizer.ggml.eos_token_id"] == 0 and found["tokenizer.ggml.add_bos_token"] is False


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("name", "steps", "model"),
    [
        ("smollm", [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)], {}),
        ("qwen2", [pre_tokenizers.Split(Regex(WORDS % ""), "isolated")], {}),
        ("llama-bpe", [pre_tokenizers.Split(Regex(WORDS % "{1,3}"), "isolated")], {"ignore_merges": True}),
        ("smaug-bpe", [pre_tokenizers.Split(Regex(WORDS % "{1,3}"), "isolated")], {}),
    ],
)
def test_how_text_is_split(build: Build, tmp_path: Path, name: str, steps: list[Any], model: Any) -> None:
    """llama.cpp, where it runs, cuts texts as the tokenizer does, or the export is refused."""
    bytes_alone = [] if name == "smollm" else [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    facts = export(build("llama", lambda: byte_level(*steps, *bytes_alone, **model)), tmp_path / "x")
    assert facts["tokenizer"]["split"] == name
    assert not RUNS or facts["parity"]["llama.cpp"]["texts_cut_alike"] == 6


@pytest.mark.parametrize("space_always", [True, False])
def test_a_tokenizer_of_pieces(build: Build, tmp_path: Path, space_always: bool) -> None:
    facts = export(build("llama", lambda: with_pieces(space_always)), tmp_path / "x")
    agreed(facts)
    found = fields(tmp_path / "x")
    assert found["tokenizer.ggml.model"] == "llama" and found["tokenizer.ggml.add_space_prefix"] is True
    assert [found["tokenizer.ggml.token_type"][i] for i in (0, 1, 2, 300)] == [2, 3, 6, 1]
    assert not RUNS or facts["parity"]["llama.cpp"]["texts_cut_alike"] == 5 + space_always
    assert not RUNS or any("puts a space before" in note for note in facts["notes"]) is not space_always


def test_without_a_tokenizer_it_takes_token_ids(build: Build, tmp_path: Path) -> None:
    source = build("llama")
    for path in source.glob("tokenizer*"):
        path.unlink()
    facts = export(source, tmp_path / "x")
    agreed(facts)
    assert facts["tokenizer"] == {"kind": "none", "split": None}
    assert "no vocabulary: the folder has no tokenizer, so it takes token ids alone" in facts["notes"]


def test_tokenizers_that_are_refused(saved: Callable[..., Path], build: Build, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match="its tokenizer is of type WordLevel, expected BPE; to export weights for token ids"
    ):
        export(saved("llama"), tmp_path / "x")
    strange = byte_level(pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    with pytest.raises(ExportError, match="is known to split text as its tokenizer does, by Punctuation, then 's"):
        export(build("llama", lambda: strange), tmp_path / "x")
    with pytest.raises(ExportError, match="its tokenizer has token 299, the model has 9 tokens"):
        vocabulary(build("llama"), 9)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("qwen3", {"attention_bias": True}, "its qwen3 has no bias in attn_output. Use target onnx"),
        ("llama", {"hidden_act": "gelu"}, "its llama has no activation 'gelu'; its deci has no activation 'gelu'"),
        ("gemma", {"tie_word_embeddings": False}, "its gemma has no untied head"),
        ("gemma", {"use_bidirectional_attention": True}, "its gemma has no attention to later tokens"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "its gemma3 has no layers but those of full attention at"),
        ("gemma3", {"rope_parameters": ROTARY}, "full attention at every 6th place and of a window with rotary base"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "its gemma3 has no soft cap of logits. Use target onnx"),
        ("gemma3", {"query_pre_attn_scalar": 16}, "attention is not scaled by 1 / sqrt"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type 'dynamic'"),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "no scaled rotary"),
    ],
)
def test_what_llama_cpp_cannot_compute(build: Build, tmp_path: Path, kind: str, changes: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        export(build(kind, **changes), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_models_and_options_that_are_refused(saved: Callable[..., Path], build: Build, tmp_path: Path) -> None:
    for kind in ("opt", "gpt2", "bert", "t5"):
        with pytest.raises(ExportError, match="use target onnx|Use target onnx"):
            export(saved(kind), tmp_path / "x")
    with pytest.raises(ExportError, match=r"no layers of different widths \(prune with --destination stock\)"):
        export(uneven(build, "qwen3"), tmp_path / "x")
    with pytest.raises(ExportError, match=r"gguf cannot be made with opset 20; it takes dtype \(fp32, fp16\), quant"):
        export(tmp_path / "nothing", tmp_path / "x", opset=20)


def test_numbers_that_half_precision_does_not_hold(build: Build, tmp_path: Path) -> None:
    source = build("llama")
    model = model_folder.module(source)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(source)
    with pytest.raises(
        ExportError, match=r"blk\.0\.ffn_up\.weight differs from the model by inf, more than F16 explains"
    ):
        export(source, tmp_path / "x", dtype="fp16")


def test_verify_finds_what_was_changed(build: Build, tmp_path: Path) -> None:
    source = build("llama")
    out = tmp_path / "x"
    export(source, out)
    path = out / "model.gguf"
    whole = path.read_bytes()
    last = next(entry for entry in gguf.GGUFReader(path).tensors if entry.name == "blk.1.ffn_down.weight")
    at = int(last.data_offset)
    path.write_bytes(whole[:at] + b"\x00\x00\x80\x3f" + whole[at + 4 :])
    with pytest.raises(VerificationError, match=r"blk\.1\.ffn_down\.weight differs from the model by"):
        verify_folder(out)
    path.write_bytes(whole[:at] + b"\x00\x00\x80\x7f" + whole[at + 4 :])
    with pytest.raises(VerificationError, match=r"blk\.1\.ffn_down\.weight has NaN or infinity"):
        verify_folder(out)
    path.write_bytes(whole[:-40])
    with pytest.raises(VerificationError, match=r"bytes, expected \d+ from its report"):
        verify_folder(out)
    path.write_bytes(whole)
    shutil.move(source, tmp_path / "gone")
    assert verify_folder(out).checks == ["it opens, all its weights are numbers"]
    path.unlink()
    with pytest.raises(VerificationError, match=r"has no model\.gguf; export it again"):
        verify_folder(out)


def test_a_truncated_file(build: Build, tmp_path: Path) -> None:
    export(build("llama"), tmp_path / "x")
    path = tmp_path / "x" / "model.gguf"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ExportError, match=r"model\.gguf is not a complete GGUF file"):
        count_finite(path)


@pytest.mark.skipif(not RUNS, reason="llama-cpp-python is not installed")
def test_what_llama_cpp_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK12 something else")
    with pytest.raises(ExportError, match=r"llama\.cpp does not load x\.gguf: .*"):
        open_file(tmp_path / "x.gguf", 64)


@pytest.mark.parametrize("destination", ["stock", "per-layer"])
def test_a_pruned_model_that_tells_stories(
    shared_data: Callable[[str], Path], tmp_path: Path, destination: Literal["stock", "per-layer"]
) -> None:
    pruned = tmp_path / "pruned"
    gp.prune(shared_data("stories260k"), output=pruned, recipe="magnitude", sparsity=0.2, destination=destination)
    facts = export(pruned, tmp_path / "x")
    agreed(facts)
    assert facts["architecture"] == {"stock": "llama", "per-layer": "deci"}[destination]
    assert verify_folder(tmp_path / "x").parameters == facts["parameters"]
