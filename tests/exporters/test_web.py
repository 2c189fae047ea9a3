"""Tests of target web: folders have all that a page needs, and wasm computes the same outputs."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

from graphprune.errors import ExportError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.checks import web_cases
from graphprune.exporters.checks.generation import generate
from graphprune.exporters.contract import ExportOptions, ExportReport
from graphprune.exporters.export_folders.folder_check import verify_folder
from graphprune.exporters.targets import web

Save = Callable[..., Path]
Exported = Callable[..., ExportReport]
ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "web"
ONE = {"num_hidden_layers": 1}
WINDOW = {"batch": 1, "sequence": 1, "past": 9}


def export(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return EXPORTERS["web"].export(source, output, ExportOptions(**options)).facts


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def edit(path: Path, change: Callable[[Any], None]) -> None:
    table = read(path)
    change(table)
    path.write_text(json.dumps(table))


@pytest.fixture(scope="module")
def llama(saved: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose weights lie in several files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "SINGLE_FILE_BYTES", 1000)
        patch.setattr(web, "_PART", 10_000)
        export(saved("llama", **ONE), out := tmp_path_factory.mktemp("web") / "llama")
    return out


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.fixture(scope="module")
def different(uneven: Save, exported: Exported) -> Path:
    """A decoder whose layers have different numbers of heads."""
    return exported(uneven(), "web").output


def test_a_folder_as_the_ecosystem_lays_it_out(llama: Path) -> None:
    table = read(llama / "web.json")
    parts = [part["path"] for part in table["external_data"]]
    assert parts == ["model.onnx_data", *(f"model.onnx_data_{i}" for i in range(1, len(parts)))] and len(parts) > 2
    assert all((llama / part["file"]).stat().st_size == part["bytes"] <= 10_000 for part in table["external_data"])
    assert sorted(path.name for path in llama.iterdir()) == [
        "cases.json", "config.json", "export_report.json", "generation_config.json", "onnx", "tokenizer.json",
        "tokenizer_config.json", "web.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (llama / "onnx").iterdir()) == ["model.onnx", *parts]
    settings = read(llama / "config.json")["transformers.js_config"]
    assert settings == {"dtype": "fp32", "use_external_data_format": {"model.onnx": len(parts)}}


def test_the_manifest_says_how_to_call_the_model(llama: Path) -> None:
    table = read(llama / "web.json")
    assert table["model"] == "onnx/model.onnx" and table["eos_token_ids"] == [2]
    assert table["inputs"]["input_ids"] == {"type": "int64", "shape": ["batch_size", "sequence_length"]}
    cache = {"type": "float32", "shape": ["batch_size", 4, "past_sequence_length", 4]}
    assert table["inputs"]["past_key_values.0.value"] == cache
    assert table["outputs"]["logits"]["type"] == "float32"


def test_stored_tokens_are_those_of_the_model(llama: Path) -> None:
    greedy = read(llama / "cases.json")["greedy"]
    model: Any = AutoModelForCausalLM.from_pretrained(read(llama / "export_report.json")["source"])
    ids = torch.tensor([greedy["prompt"]])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, eos_token_id=-1)
    assert made[0, ids.shape[1] :].tolist() == greedy["tokens"] and greedy["decided"] > 0
    assert len(generate(llama, "w3 w4", 4).split()) == 4


def test_verify_repeats_the_stored_cases(llama: Path) -> None:
    assert (llama / "cases.json").stat().st_size < 12_000
    checks = verify_folder(llama).checks
    assert "web.json names all files" in checks and any("the stored cases come out" in check for check in checks)


@pytest.mark.slow
def test_layers_of_different_heads(different: Path) -> None:
    inputs = read(different / "web.json")["inputs"]
    assert [inputs[f"past_key_values.{layer}.key"]["shape"][1] for layer in range(2)] == [4, 2]


@pytest.mark.parametrize(
    ("options", "name", "settings"),
    [
        ({"quant": "int8", "portable": True}, "model_quantized.onnx", {"dtype": "q8"}),
        (
            {"quant": "int4", "dtype": "fp16", "static": WINDOW},
            "model_q4f16.onnx",
            {"dtype": "q4f16", "kv_cache_dtype": {"q4f16": "float16"}},
        ),
    ],
)
def test_names_of_precisions(
    saved: Save, decoder: Path, tmp_path: Path, options: Any, name: str, settings: Any
) -> None:
    source = saved("llama", **ONE) if "dtype" in options else decoder
    facts = export(source, tmp_path / "x", **options)
    assert facts["bytes"] == (tmp_path / "x" / "onnx" / name).stat().st_size
    assert ("com.microsoft" in facts["operators"]) == ("portable" not in options)
    assert ("export with --portable" in facts["notes"][-1]) == ("portable" not in options)
    assert read(tmp_path / "x" / "config.json")["transformers.js_config"] == settings
    kinds = {value["type"] for value in read(tmp_path / "x" / "web.json")["inputs"].values()}
    assert kinds == {"int64", "float16" if "dtype" in options else "float32"}
    assert web.check(tmp_path / "x")[0] == "web.json names all files"


@pytest.mark.parametrize(("kind", "changes", "inputs"), [
    ("bert", ONE, ["input_ids", "attention_mask", "token_type_ids"]),
    pytest.param("resnet", {}, ["pixel_values"], marks=pytest.mark.slow),
])  # fmt: skip
def test_models_without_a_cache(saved: Save, tmp_path: Path, kind: str, changes: Any, inputs: list[str]) -> None:
    export(saved(kind, **changes), tmp_path / "x")
    table = read(tmp_path / "x" / "web.json")
    assert sorted(table["inputs"]) == sorted(inputs) and table["external_data"] == [] == table["eos_token_ids"]
    assert len(read(tmp_path / "x" / "cases.json")["cases"]) >= 3
    assert (tmp_path / "x" / "cases.json").stat().st_size < 6000
    assert verify_folder(tmp_path / "x").max_error is not None


def test_a_window_of_fixed_sizes(decoder: Path, tmp_path: Path) -> None:
    export(decoder, tmp_path / "x", static=WINDOW)
    assert read(tmp_path / "x" / "web.json")["inputs"]["past_key_values.0.key"]["shape"] == [1, 4, 9, 4]
    (case,) = read(tmp_path / "x" / "cases.json")["cases"]
    assert case["steps"][0]["inputs"]["past_key_values.0.key"] == {"shape": [1, 4, 9, 4], "wave": 3}
    assert verify_folder(tmp_path / "x").max_error is not None


def test_a_weight_that_no_browser_holds(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_BUFFER", 4000)
    with pytest.raises(ExportError, match=r"takes \d+ bytes, a browser holds 4000 in one piece; use --dtype fp16 or"):
        web.save_parts(ir.load(llama / "onnx" / "model.onnx"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_lost_or_cut(copied: Path) -> None:
    part = copied / "onnx" / "model.onnx_data_1"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(VerificationError, match=r"cannot open model\.onnx"):
        verify_folder(copied)
    with pytest.raises(
        VerificationError, match=r"model\.onnx_data_1 has \d+ bytes, web\.json expects \d+: export again"
    ):
        web.check(copied)
    part.unlink()
    with pytest.raises(VerificationError, match=r"model\.onnx_data_1"):
        verify_folder(copied)


def test_a_part_that_the_manifest_does_not_name(copied: Path) -> None:
    (copied / "onnx" / "model.onnx_data_99").write_bytes(b"more")
    with pytest.raises(VerificationError, match=r"holds weights that web\.json does not name"):
        web.check(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda table: logits(table)["values"].__setitem__(0, 9.0),
            "step 0: logits differs from the stored val",
        ),
        (lambda table: logits(table)["shape"].__setitem__(0, 9), r"logits has shape \[2, 7, 60\], expected \[9, 7"),
        (
            lambda table: logits(table)["argmax"][0].__setitem__(1, 59),
            "logits has another most likely output",
        ),
        (lambda table: table["greedy"]["tokens"].__setitem__(0, 59), r"greedy tokens are \[.*\], expected \[59"),
    ],
)
def test_cases_that_do_not_come_out(copied: Path, change: Callable[[Any], None], words: str) -> None:
    edit(copied / "cases.json", change)
    with pytest.raises(VerificationError, match=words):
        web.check(copied)


def logits(table: Any) -> Any:
    return table["cases"][0]["steps"][0]["outputs"]["logits"]


def test_numbers_that_every_language_computes() -> None:
    numbers = web_cases.wave(torch.Size([2, 2]), 10005)
    whole = torch.tensor([[4176, 2088], [0, 7919]], dtype=torch.float64)  # (10005 + i) * 7919 modulo 10007
    assert torch.equal(numbers, (whole / 5003.5 - 1).float())


def run_node(*command: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    if shutil.which("node") is None or not (TOOL / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("needs Node and onnxruntime-web: run tools/verify_web once with a folder of target web")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["llama", "different"])
def test_decoders_in_wasm(folder: str, request: pytest.FixtureRequest) -> None:
    done = run_node(str(ROOT / "tools" / "verify_web"), str(request.getfixturevalue(folder)))
    assert done.returncode == 0, done.stderr
    assert "greedy: 16 of 16 tokens equal" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes", "options"), [
    ("llama", ONE, {"quant": "int8"}), ("llama", ONE, {"quant": "int4", "dtype": "fp16"}), ("gpt2", {"n_layer": 1}, {}),
    ("llama", ONE, {"quant": "int4", "portable": True}),
    ("llama", ONE, {"static": WINDOW}), ("bert", ONE, {"quant": "int8"}),
    ("resnet", {}, {"dtype": "fp16"}), ("vit", ONE, {}),
])  # fmt: skip
def test_other_models_in_wasm(saved: Save, tmp_path: Path, kind: str, changes: Any, options: Any) -> None:
    export(saved(kind, **changes), tmp_path / "x", **options)
    done = run_node(str(ROOT / "tools" / "verify_web"), str(tmp_path / "x"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda table: logits(table)["values"].__setitem__(0, 9.0),
            r"step 0: logits differs by .*, allowed are 0.0005",
        ),
        (lambda table: logits(table)["argmax"][0].__setitem__(1, 59), r"logits prefers \d+ in row \d+, not 59"),
        (lambda table: table["greedy"]["tokens"].__setitem__(0, 59), r"greedy tokens are [\d,]+, not 59,"),
    ],
)
def test_a_difference_in_wasm_is_told(copied: Path, change: Callable[[Any], None], words: str) -> None:
    edit(copied / "cases.json", change)
    done = run_node(str(ROOT / "tools" / "verify_web"), str(copied))
    assert done.returncode == 1 and re.search(words, done.stderr)


@pytest.fixture
def served(llama: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(llama)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
def test_the_page_of_the_document(llama: Path, served: str) -> None:
    text = (ROOT / "exporters" / "README.md").read_text(encoding="utf-8").split("## Run a model in a browser\n")[1]
    page = text.split("```js\n")[1].split("```")[0].replace("https://example.org/my-model", served)
    greedy = read(llama / "cases.json")["greedy"]
    page = page.replace("[504, 2365, 282]", str(greedy["prompt"]))
    done = run_node("node", "--input-type=module", "-e", page, cwd=TOOL)
    assert done.returncode == 0, done.stderr
    written = [*greedy["tokens"][:8], 2]
    assert [int(word) for word in done.stdout.split()] == written[: written.index(2)]
