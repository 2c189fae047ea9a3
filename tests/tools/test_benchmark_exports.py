"""The benchmark of exports runs each folder by its own runtime, right and wrong as the model itself is."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import graphprune as gp
from graphprune.errors import ExportError
from graphprune.exporters.onnx_tools.sessions import CPU
from tools import benchmark_exports
from tools.export_benchmark import measure as measure_module
from tools.export_benchmark.labelled import Item, answers, items
from tools.export_benchmark.measure import Measured, measure, realised
from tools.export_benchmark.opened import opened
from tools.export_benchmark.readers import Bound, reader_of
from tools.export_benchmark.table import table

SENTENCES = [" ".join(f"w{3 + (i * j) % 50}" for j in range(1, 3 + i % 4)) for i in range(12)]


@pytest.fixture(scope="module")
def encoder(tiny: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of sentences with its tokenizer."""
    path = tmp_path_factory.mktemp("encoder") / "dense"
    tiny("bert", num_hidden_layers=1).save_pretrained(path)
    for file in folder.glob("*token*"):
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.fixture(scope="module")
def exports(encoder: Path) -> dict[str, Path]:
    """The same classifier as three targets have it."""
    made = {name: encoder.parent / name for name in ("hf", "onnx", "onnx-mobile")}
    gp.export(encoder, target="hf", output=made["hf"])
    gp.export(encoder, target="onnx", output=made["onnx"])
    gp.export(made["onnx"], target="onnx-mobile", output=made["onnx-mobile"], static={"batch": 1, "sequence": 9})
    return made


@pytest.fixture(scope="module")
def labelled(encoder: Path) -> Path:
    """Sentences, the first half labelled as the model itself would, the others not."""
    path, model = encoder.parent / "dev.tsv", gp.load(encoder).module()
    path.write_text("\n".join(["sentence\tlabel", *(f"{text}\t0" for text in SENTENCES)]))
    lines = []
    for i, (text, item) in enumerate(zip(SENTENCES, items(path, encoder, None), strict=True)):
        scores = model(**{name: item.values[name] for name in ("input_ids", "attention_mask")}).logits[0]
        lines.append(f"{text}\t{int(scores.argmax() if i < 6 else scores.argmin())}")
    path.write_text("\n".join(["sentence\tlabel", *lines]))
    return path


def test_every_runtime_is_right_where_the_model_is(exports: dict[str, Path], labelled: Path) -> None:
    """The one of fixed length too, which masks what it adds."""
    models = [opened(folder) for folder in exports.values()]
    assert [model.length for model in models] == [None, None, 9]
    right, seconds = answers(items(labelled, exports["hf"], None), models)
    assert right == [0.5, 0.5, 0.5] and [len(one) for one in seconds] == [12, 12, 12]
    assert answers(items(labelled, exports["hf"], 6), models)[0] == [1, 1, 1]


def test_the_inputs_are_those_that_the_export_takes(exports: dict[str, Path]) -> None:
    fixed = opened(exports["onnx-mobile"])
    item = Item({name: torch.ones(1, 10, dtype=torch.long) for name in fixed.names}, 0)
    with pytest.raises(ValueError, match="a sentence of 10 tokens, the export takes 9: --static"):
        item.feeds(fixed)
    image = Item({"image": torch.zeros(1, 3, 4, 4)}, 0)
    assert list(image.feeds(fixed)) == list(fixed.names)


@pytest.mark.slow  # the same measurements as above
def test_a_run_from_the_command_line(
    exports: dict[str, Path], labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """An earlier run's rows come first."""
    earlier = Measured("earlier", "hf", {}, 10, 40, None, 0.0, 0, {"item": [2.0]}, right=0.75)
    (tmp_path / "1").write_text(json.dumps([asdict(earlier)]))
    files = ["--json", str(tmp_path / "2"), "--after", str(tmp_path / "1")]
    monkeypatch.setattr(sys, "argv", ["tool", str(exports["onnx"]), "--labelled", str(labelled), *files])
    benchmark_exports.main()
    heads, _, *rows = capsys.readouterr().out.splitlines()
    assert "accuracy" in heads and "prefill" not in heads
    assert [row.split(" | ")[0] for row in rows] == ["| earlier", "| onnx"] and "50.00%" in rows[1]
    assert [one["right"] for one in json.loads((tmp_path / "2").read_text())] == [0.75, 0.5]


@pytest.mark.slow
def test_decoders_read_in_parts_what_the_model_reads_at_once(tiny: Any, tmp_path: Path) -> None:
    """By a cache that is handed on, one that stays on the device, and one of fixed size."""
    tiny("llama", num_hidden_layers=1).save_pretrained(tmp_path / "dense")
    ids = torch.tensor([[5, 9, 14, 3, 8, 2]])
    wanted = gp.load(tmp_path / "dense").module()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    window = {"batch": 1, "sequence": 1, "past": 7}
    for source, target, static in (("dense", "hf", None), ("dense", "onnx", None), ("onnx", "onnx-mobile", window)):
        gp.export(tmp_path / source, target=target, output=tmp_path / target, static=static)
        model = opened(tmp_path / target)
        readers = [reader_of(model, 6)]
        readers += [Bound(model.runs)] if target == "onnx" else []
        for reader in readers:
            assert reader is not None
            for _ in range(2):
                found = torch.cat([reader.read(ids[:, :4]), reader.read(ids[:, 4:5]), reader.read(ids[:, 5:])], 1)
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
                reader.restart()


def test_only_onnx_files_run_without_labelled_items(exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "_memory", lambda *_: 0)  # that starts a process
    options = argparse.Namespace(
        folders=[exports["hf"]], labelled=None, provider=CPU, threads=1, repeats=1, text=[], windows=1, items=None,
        prompt=1, tokens=1,
    )  # fmt: skip
    with pytest.raises(
        ExportError, match="no decoder and no ONNX file is measured on labelled items; give --labelled FILE"
    ):
        measure(options)


def test_what_is_realised_is_the_share_of_the_saved_products_that_shows_as_time() -> None:
    dense = Measured("dense", "onnx", {}, 10, 40, 100, 0.0, 0, {"item": [2.0, 2.0, 9.0]})
    pruned = Measured("pruned", "onnx", {}, 5, 20, 50, 0.0, 0, {"item": [1.5, 1.5, 1.5]}, right=0.75)
    assert realised(dense, pruned) == {"item": 0.5} and realised(dense, dense) == {}
    unknown = Measured("litert", "litert", {}, 5, 20, None, 0.0, 0, {"item": [1.0]})
    assert realised(unknown, unknown) == {}
    pruned.realised = realised(dense, pruned)
    assert "| 50% |" in list(table([pruned]))[2] and "| 75.00% |" in list(table([pruned]))[2]
