"""Folders with fewer tokens load like the original, and give its outputs for the tokens that they retain."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import graphprune as gp
from graphprune.errors import ExportError, GraphpruneError, LoadError
from graphprune.huggingface import model_folder
from graphprune.workflows.runs import run_file
from graphprune.workflows.trimming.trim_options import TrimOptions
from tests.vocabulary.small_tokenizers import ENGLISH, OTHER, folder_of, tokenizer_of
from tests.vocabulary.test_sentencepiece import piece

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "tied decoder": ("byte-level", "LlamaForCausalLM", "LlamaConfig", {
        **SMALL, "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": True, "rows": 448,
    }),
    "untied decoder": ("byte fallback", "LlamaForCausalLM", "LlamaConfig", {
        **SMALL, "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": False,
    }),
    "masked": ("WordPiece", "BertForMaskedLM", "BertConfig", {**SMALL, "max_position_embeddings": 64}),
    "classifier": ("WordPiece", "BertForSequenceClassification", "BertConfig", {**SMALL, "num_labels": 3}),
    "encoder-decoder": ("Unigram", "T5ForConditionalGeneration", "T5Config", {
        "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "tie_word_embeddings": False,
        "decoder_start_token_id": 3, "pad_token_id": 3, "eos_token_id": 2,
    }),
}  # fmt: skip
SLOW = pytest.mark.slow


def model(name: str, path: Path) -> Path:
    """Folder of a random model; ids of special tokens are those of its tokenizer."""
    kind, cls, config, fields = MODELS[name]
    if name == "tied decoder":
        ids = tokenizer_of(kind).get_vocab()
        fields = {**fields, "bos_token_id": ids["<s>"], "eos_token_id": [ids["</s>"]], "pad_token_id": ids["<pad>"]}
    return folder_of(kind, path, cls, config, **fields)


def corpus(path: Path) -> Path:
    """A file with English sentences."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ENGLISH)
    (path / "english.jsonl").write_text(lines, encoding="utf-8")
    return path / "english.jsonl"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, gp.Trimming]:
    """A decoder, the trimmed one and the record of its trim."""
    path = tmp_path_factory.mktemp("decoder")
    source = model("tied decoder", path / "source")
    generation = {"eos_token_id": [421, 422], "suppress_tokens": [5, 419], "forced_decoder_ids": [[1, 417]]}
    (source / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    text = corpus(path)
    made = gp.trim(source, text=[text], output=path / "small", evaluate=[text], windows=1, length=64, align=8)
    return source, path / "small", made


def logits(folder: Path, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits of the model of a folder."""
    with torch.no_grad():
        scores: torch.Tensor = model_folder.module(folder)(input_ids=ids, **inputs).logits
    return scores


def require_equal_logits(source: Path, small: Path, text: str, **inputs: Any) -> None:
    """Compare the logits of retained tokens on a text, all of whose tokens are retained."""
    old, new = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, small))
    numbers = {old.get_vocab()[token]: number for token, number in new.get_vocab().items()}
    before, after = (torch.tensor([each(text)["input_ids"]]) for each in (old, new))
    assert [numbers[int(i)] for i in before[0]] == after[0].tolist()
    retained = torch.tensor(sorted(numbers))
    a, b = logits(source, before, **inputs), logits(small, after, **inputs)
    if a.shape[-1] == b.shape[-1] == 3:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        return
    assert b.shape[-1] == len(numbers) < a.shape[-1]
    torch.testing.assert_close(a[..., retained], b, rtol=1e-5, atol=1e-5)


def test_a_decoder_gives_the_logits_of_retained_tokens(decoder: tuple[Path, Path, gp.Trimming]) -> None:
    source, small, made = decoder
    require_equal_logits(source, small, ENGLISH[0])
    assert made.tokens[1] % 8 == 0 and made.tokens[1] < made.tokens[0]
    rows = (448 - made.tokens[1]) * 16
    assert made.parameters[0] - made.parameters[1] == rows
    assert made.error <= 1e-5


def test_identifiers_follow_in_every_file(decoder: tuple[Path, Path, gp.Trimming]) -> None:
    source, small, _ = decoder
    old, new = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, small))
    moved = {i: new.convert_tokens_to_ids(old.convert_ids_to_tokens(i)) for i in (5, 417, 419, 421, 422)}
    config, table = json.loads((small / "config.json").read_text()), model_folder.read_json(small / "tokenizer.json")
    assert config["bos_token_id"] == new.bos_token_id != old.bos_token_id
    assert config["eos_token_id"] == [moved[old.get_vocab()["</s>"]]] == [moved[422]]
    assert config["vocab_size"] == len(new)
    generation = json.loads((small / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == [moved[5], moved[419]]
    assert generation["eos_token_id"] == [moved[421], moved[422]]
    assert generation["forced_decoder_ids"] == [[1, moved[417]]]
    assert table["post_processor"]["special_tokens"]["<s>"]["ids"] == [new.bos_token_id] == new("")["input_ids"]


def test_the_record_has_bits_per_byte_before_and_after(decoder: tuple[Path, Path, gp.Trimming]) -> None:
    _, small, made = decoder
    ((before, after),) = made.texts.values()
    assert before.bits_per_byte and after.bits_per_byte and after.tokens_per_word == before.tokens_per_word
    assert after.bits_per_byte < before.bits_per_byte  # fewer tokens share the probability of a random model
    record = json.loads((small / "trim.json").read_text())
    assert record["tokens"] == list(made.tokens) and record["sha256"]


def test_a_file_repeats_the_run(decoder: tuple[Path, Path, gp.Trimming], tmp_path: Path) -> None:
    again = gp.trim(**run_file.read(decoder[1] / "trim.yaml", TrimOptions), output=tmp_path / "again")
    assert again.sha256 == decoder[2].sha256 and again.tokens == decoder[2].tokens
    assert "graphprune trim --config trim.yaml" in (decoder[1] / "trim.yaml").read_text(encoding="utf-8")


@SLOW
def test_a_trimmed_decoder_is_pruned(decoder: tuple[Path, Path, gp.Trimming], tmp_path: Path) -> None:
    result = gp.prune(decoder[1], sparsity=0.05, recipe="magnitude", align=1, output=tmp_path / "pruned")
    assert result.report.parameters_before == decoder[2].parameters[1]
    assert len(model_folder.tokenizer(tmp_path / "pruned")) == decoder[2].tokens[1]


def test_the_budget_of_a_cut_counts_the_tokens(decoder: tuple[Path, Path, gp.Trimming], tmp_path: Path) -> None:
    source, _, made = decoder
    text = corpus(tmp_path)
    options: dict[str, Any] = {"recipe": "magnitude", "align": 1, "trim": [text], "trim_coverage": 0.95}
    result = gp.prune(source, sparsity=0.2, output=tmp_path / "pruned", **options)
    report = result.report
    assert report.parameters_before == made.parameters[0]
    assert report.parameters_after == pytest.approx(0.8 * report.parameters_before, rel=0.02)
    assert any("vocabulary was trimmed first" in note for note in report.notes)
    assert len(model_folder.tokenizer(tmp_path / "pruned")) < made.tokens[0]
    with pytest.raises(GraphpruneError, match="trim alone removes"):
        gp.prune(source, sparsity=0.01, output=tmp_path / "more", **options)
    with pytest.raises(GraphpruneError, match="protect names model.embed_tokens.weight"):
        gp.prune(source, sparsity=0.5, output=tmp_path / "more", protect=["model.embed_tokens.weight"], **options)
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    "name", ["classifier", *(pytest.param(n, marks=SLOW) for n in ("untied decoder", "masked", "encoder-decoder"))]
)
def test_models_of_every_kind_follow(name: str, tmp_path: Path) -> None:
    source, small, words = model(name, tmp_path / "source"), tmp_path / "small", tmp_path / "words.txt"
    words.write_text("perezoso\n", encoding="utf-8")
    more: dict[str, Any] = {"keep": words, "keep_script": ["Greek"]}
    made = gp.trim(source, text=[corpus(tmp_path)], coverage=0.95, align=1, output=small, **more)
    old, new = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, small))
    for text in ("perezoso", OTHER[0]):
        assert {*old.tokenize(text)} <= new.get_vocab().keys()
    inputs = {"decoder_input_ids": torch.tensor([[0, 1]])} if name == "encoder-decoder" else {}
    assert made.coverage < 1
    require_equal_logits(source, small, "the", **inputs)


def test_rows_of_first_pieces_move_to_the_mean(tmp_path: Path) -> None:
    source, small = model("tied decoder", tmp_path / "source"), tmp_path / "small"
    gp.trim(source, text=[corpus(tmp_path)], coverage=0.8, align=1, mean_rows=True, output=small)
    old, new = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, small))
    ids = torch.tensor([old.get_vocab()[token] for token in sorted(new.get_vocab(), key=new.get_vocab().__getitem__)])
    a, b = (model_folder.module(folder).get_input_embeddings().weight.detach() for folder in (source, small))
    moved = (a[ids] - b).abs().amax(1) > 1e-6
    assert 0 < int(moved.sum()) < len(ids) / 2


@SLOW
def test_a_tokenizer_that_truncates_is_trimmed_by_whole_texts(tmp_path: Path) -> None:
    source, small = model("classifier", tmp_path / "source"), tmp_path / "small"
    table = json.loads((source / "tokenizer.json").read_text())
    table["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (source / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    gp.trim(source, text=[corpus(tmp_path)], coverage=0.9999, align=1, output=small)
    assert json.loads((small / "tokenizer.json").read_text())["truncation"] == table["truncation"]
    old, new = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, small))
    assert all(old.tokenize(text) == new.tokenize(text) for text in ENGLISH)


def _edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}), encoding="utf-8")


BROKEN: dict[str, tuple[type[GraphpruneError], str]] = {
    "unknown id": (LoadError, r"config.json: eos_token_id is 440, which the tokenizer does not know"),
    "disagreeing files": (LoadError, r"tokenizer.json and .*vocab.json disagree on 2 tokens"),
    "disagreeing pieces": (LoadError, r"disagree: the second has 1 pieces that the first lacks, .* 'strange'"),
    "larger head": (LoadError, r"lm_head.weight has shape \[454, 16\], expected \[448, 16\]"),
    "other encoding": (LoadError, r"cannot read the text .*in UTF-8"),
    "empty corpus": (GraphpruneError, r"corpus is empty"),
    "no tokenizer": (LoadError, r"has no tokenizer"),
    "existing output": (ExportError, r"exists already"),
}


def _damage(fault: str, source: Path, text: Path, output: Path) -> None:
    match fault:
        case "unknown id":
            _edit(source / "config.json", eos_token_id=440)
        case "disagreeing files":
            (source / "vocab.json").write_text(json.dumps({"!": 1, '"': 0}), encoding="utf-8")
        case "disagreeing pieces":
            (source / "spiece.model").write_bytes(piece("strange"))
        case "larger head":
            stored = load_file(source / "model.safetensors")
            stored["lm_head.weight"] = torch.zeros(454, 16)
            save_file(stored, source / "model.safetensors", {"format": "pt"})
        case "other encoding":
            text.write_bytes("Ο".encode("iso8859-7"))
        case "empty corpus":
            text.write_text("", encoding="utf-8")
        case "no tokenizer":
            for path in source.glob("tokenizer*"):
                path.unlink()
        case "existing output":
            output.mkdir(parents=True)


@pytest.mark.parametrize("fault", BROKEN)
def test_bad_input_is_one_error_and_nothing_is_written(
    fault: str, decoder: tuple[Path, Path, gp.Trimming], tmp_path: Path
) -> None:
    source, text, output = tmp_path / "source", corpus(tmp_path), tmp_path / "out" / "small"
    source.mkdir()
    for path in decoder[0].iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    _damage(fault, source, text, output)
    before = sorted(tmp_path.rglob("*"))
    error, message = BROKEN[fault]
    with pytest.raises(error, match=message):
        gp.trim(source, text=[text], output=output)
    assert sorted(tmp_path.rglob("*")) == before
