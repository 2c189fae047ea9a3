"""Masked language models, classifiers and encoder-decoders are trained on texts, too."""

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import graphprune as gp
from graphprune.errors import CalibrationError, OptionError
from graphprune.healing.data.text_examples import Steps, TextWindows, held_windows
from graphprune.healing.data.text_tasks import TextTask
from tests.conftest import SIZES, TEXT, WORDS

SMALL: dict[str, Any] = {"length": 12, "batch": 8, "held_out": 4, "evaluations": 2, "rate": 0.005}
Saved = Callable[[Any], Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Save a model with a tokenizer that has special tokens around a text, and one for a mask."""

    def save(model: Any) -> Path:
        special = {"unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
        words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<mask>": 3, **{f"w{i}": i for i in range(4, WORDS)}}
        made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        kind: Any = PreTrainedTokenizerFast
        model.save_pretrained(tmp_path / "model")
        kind(tokenizer_object=made, pad_token="<unk>", **special).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def bert(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {**TEXT, **SIZES, **changes}
    return getattr(transformers, kind)(transformers.BertConfig(**settings))


def test_a_masked_language_model(saved: Saved, text: Path, tmp_path: Path) -> None:
    folder = saved(bert("BertForMaskedLM"))
    options = {"data": [text], "tokens": "2k", "output": tmp_path / "healed", **SMALL}
    before, after = gp.heal(folder, **options).held_out
    assert before is not None and after is not None and after < before - 0.05
    kind = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "healed")
    assert type(kind).__name__ == "BertForMaskedLM"
    with pytest.raises(OptionError, match="a masked model has no perplexity"):
        gp.heal(folder, evaluate=[text], **{**options, "output": tmp_path / "other"})


def test_a_classifier(saved: Saved, tmp_path: Path) -> None:
    folder = saved(bert("BertForSequenceClassification", num_labels=3))
    lines = [
        {"text": " ".join(f"w{4 + (i + j) % 5 + 5 * (i % 3)}" for j in range(3 + i % 7)), "label": i % 3}
        for i in range(60)
    ]
    data = tmp_path / "labeled.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"data": [data], "epochs": 6, "output": tmp_path / "healed", **SMALL}
    healing = gp.heal(folder, **options)
    before, after = healing.held_out
    assert before is not None and after is not None and after < 0.5 * before and healing.examples == (56, 4)
    data.write_text(data.read_text() + json.dumps({"text": "w5", "label": 3}))
    with pytest.raises(CalibrationError, match="has the label 3, expected a whole number from 0 to 2"):
        gp.heal(folder, **{**options, "output": tmp_path / "other"})
    data.write_text(json.dumps({"text": "w5", "label": 1}) + "\n" + json.dumps({"text": "w6", "label": 1}))
    with pytest.raises(CalibrationError, match="all 2 texts have the label 1"):
        gp.heal(folder, **{**options, "output": tmp_path / "other"})
    assert {path.name for path in tmp_path.iterdir()} == {"model", "labeled.jsonl", "healed"}


def test_a_classifier_with_a_teacher_needs_no_labels_and_its_accuracy_is_measured(saved: Saved, tmp_path: Path) -> None:
    dense, pruned = tmp_path / "dense", bert("BertForSequenceClassification", num_labels=3)
    shutil.copytree(saved(pruned), dense)
    teacher = transformers.BertForSequenceClassification.from_pretrained(dense)
    with torch.no_grad():
        for layer in pruned.bert.encoder.layer:
            layer.output.dense.weight.mul_(0.3)
        for row, weight in enumerate(teacher.classifier.weight):
            weight.mul_(10 * (row + 1))
    folder = saved(pruned)
    teacher.save_pretrained(dense)
    rows = [[4 + (i * j) % 40 for j in range(1, 4 + i % 5)] for i in range(60)]
    with torch.no_grad():
        labels = [int(teacher(torch.tensor([row])).logits.argmax()) for row in rows]
    plain, labeled = tmp_path / "plain.txt", tmp_path / "labeled.tsv"
    lines = [" ".join(f"w{number}" for number in row) for row in rows]
    plain.write_text("\n".join(lines))
    labeled.write_text("text\tlabel\n" + "".join(f"{line}\t{y}\n" for line, y in zip(lines, labels, strict=True)))
    options = {"teacher": dense, "epochs": 8, "output": tmp_path / "healed", "evaluate": [labeled], **SMALL}
    healing = gp.heal(folder, data=[plain], **options)
    (loss, healed_loss), (before, after) = healing.held_out, healing.accuracy[str(labeled)]
    assert loss is not None and healed_loss is not None and healed_loss < 0.8 * loss and healing.examples == (56, 4)
    module = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "healed")
    with torch.no_grad():
        found = [int(module(torch.tensor([row])).logits.argmax()) for row in rows]
    assert after == sum(a == b for a, b in zip(found, labels, strict=True)) / 60 > before
    assert f"accuracy: {before:.2%} -> {after:.2%} on {labeled}" in repr(healing)
    assert f"| labeled.tsv | {before:.2%} | {after:.2%} |" in (tmp_path / "healed" / "README.md").read_text()
    with pytest.raises(CalibrationError, match="text 1 of .*plain.txt, .* has the label null"):
        gp.heal(folder, data=[plain], **{**options, "teacher": None, "evaluate": [], "output": tmp_path / "other"})


def test_what_is_masked() -> None:
    task = TextTask("masked", ((1,), (2,)), mask=3)
    ids = torch.arange(10, 20).view(1, -1)
    inputs, labels = task.example(ids, 0.3, [5])
    drawn = inputs["input_ids"][0] == 3
    assert inputs["input_ids"][0, [0, -1]].tolist() == [1, 2] and int(drawn.sum()) == 3
    assert torch.equal(labels[0, drawn], ids[0, drawn[1:-1]]) and bool((labels[0, ~drawn] == -100).all())


def test_the_order_is_that_of_a_seed_and_held_out_windows_are_never_trained_on() -> None:
    ids = torch.arange(20 * 4, dtype=torch.int32).view(20, 4)
    held = held_windows(20, 32)
    assert held == [5, 15]

    def windows(start: int, steps: int, share: range, seed: int = 0) -> list[list[int]]:
        examples = TextWindows(TextTask("causal"), ids, held, Steps(6, 2, seed), 0.15, repeated=False)
        stream = examples.steps(start, share)
        batches = (next(stream) for _ in range(steps))
        return [[int(row[0]) // 4 for part in parts for row in part.inputs["input_ids"]] for parts in batches]

    whole = windows(0, 6, range(0, 1))
    passes = [sorted(chain(*steps)) for steps in (whole[:3], whole[3:])]
    assert passes == [sorted({*range(20)} - {*held})] * 2 and whole[3:] != whole[:3]
    assert windows(4, 2, range(0, 1)) == whole[4:]
    first, second = (windows(0, 6, range(i, 2)) for i in range(2))
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(step) for step in whole]
    assert windows(0, 1, range(0, 1), seed=1) != whole[:1]
