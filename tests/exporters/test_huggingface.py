"""Tests of saved folders: they load with transformers alone, and give the outputs of the program."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import graphprune as gp
from graphprune.errors import ExportError
from graphprune.exporters.checks.reloading import reload
from graphprune.exporters.model_folders.folder_writer import save
from graphprune.frontends import huggingface
from graphprune.frontends.modules import trace
from graphprune.huggingface.meta_models import auto_class
from graphprune.ir.program import Program, Source
from graphprune.ir.weights import Layered
from tests.small_configs import DEPTHS

Narrow = Callable[..., Program]
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"intermediate_size": 21, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}),
    ("opt", {"ffn_dim": 17}),
    ("gpt2", {"n_inner": 50}),
    ("bert", {"intermediate_size": 10}),
    ("t5", {"d_ff": 30, "num_heads": 2, "num_layers": 1}),
    ("vit", {"intermediate_size": 11}),
    ("resnet", {"hidden_sizes": [8, 12]}),
]
ONE = {"num_hidden_layers": 1, "intermediate_size": 20}


def slow_except(*kinds: str) -> list[Any]:
    """Parameters of a test of all kinds, which runs for a few of them by default."""
    return [
        pytest.param(kind, changes, id=kind, marks=[] if kind in kinds else pytest.mark.slow) for kind, changes in KINDS
    ]


@pytest.mark.parametrize(("kind", "changes"), slow_except("llama", "gpt2", "vit", "resnet"))
def test_the_stock_class_gives_the_numbers_of_the_program(
    narrowed: Narrow, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    program = narrowed(kind, **changes)
    report = save(program, tmp_path / "out", destination="stock")
    assert report.facts["error"]["relative"] < 1e-5
    model: Any = reload(tmp_path / "out", "stock")
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        name: shape for name, shape in program.shapes().items() if name in program.parameters
    }
    assert report.files == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert report.facts["loads_with"] == [f"transformers.{auto_class(model.config).__name__}.from_pretrained(folder)"]


@pytest.fixture(scope="module")
def folder(narrowed: Narrow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saved") / "out"
    save(narrowed("llama", **KINDS[0][1]), out, destination="stock")
    return out


def test_it_generates(folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = AutoTokenizer.from_pretrained(folder)("w3 w4 w5", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


def test_it_can_be_pruned_again(folder: Path, tmp_path: Path) -> None:
    program = huggingface.load(folder)
    save(program, tmp_path / "again", destination="stock")
    with pytest.raises(ExportError, match="is or contains the source .*; choose another output"):
        save(program, folder, destination="stock", force=True)
    with pytest.raises(ExportError, match="is or contains the source .*; choose another output"):
        save(program, folder.parent, destination="stock", force=True)


def test_others_may_read_it_as_they_may_any_file(folder: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_a_tied_head_is_stored_once(folder: Path) -> None:
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_older_versions_find_what_they_look_for(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50000.0
    assert config["dtype"] == "float32"
    assert config["use_cache"] is True
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_tokenizer_and_settings_come_along_but_no_weights_or_code(narrowed: Narrow, tmp_path: Path) -> None:
    program = narrowed("llama", **ONE)
    assert program.source is not None
    for name in ("pytorch_model.bin", "evil.py", "report.json", "model.safetensors.index.json", "LICENSE"):
        (program.source.path / name).write_text("{}")
    try:
        files = save(program, tmp_path / "out", destination="stock").files
    finally:
        for name in ("pytorch_model.bin", "evil.py", "report.json", "model.safetensors.index.json", "LICENSE"):
            (program.source.path / name).unlink()
    assert files == [
        "LICENSE", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_the_type_of_the_source(narrowed: Narrow, tmp_path: Path, dtype: torch.dtype) -> None:
    report = save(narrowed("llama", dtype, **ONE), tmp_path / "out", destination="stock")
    assert report.facts["error"]["relative"] < 1e-6, "what is not stored, as rotary frequencies, is not rounded"
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == dtype


def test_large_models_are_split(narrowed: Narrow, tmp_path: Path) -> None:
    program = narrowed("llama", **ONE)
    files = save(program, tmp_path / "out", destination="stock", shard_bytes=20_000).files
    assert "model.safetensors.index.json" in files
    weights = [tmp_path / "out" / name for name in files if name.endswith(".safetensors")]
    assert len(weights) > 1 and all(path.stat().st_size < 22_000 for path in weights)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.fixture(scope="module")
def loaded(saved: Callable[..., Path]) -> Narrow:
    """A program of a narrow folder that says it comes from a wide one."""

    def load(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Program:
        depth = {name: changes[name] for name in DEPTHS if name in changes}
        return replace(
            huggingface.load(saved(kind, **changes)), source=Source(saved(kind, **depth), "huggingface", dtype)
        )

    return load


@pytest.mark.parametrize(("kind", "changes", "dtype"), [
    *(pytest.param(*one.values, torch.float32, marks=one.marks) for one in slow_except("resnet")),
    ("llama", ONE, torch.bfloat16),
])  # fmt: skip
def test_a_folder_over_the_limit_is_checked_in_parts(
    loaded: Narrow, tmp_path: Path, kind: str, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    program = loaded(kind, dtype, **changes)
    whole = save(program, tmp_path / "whole", destination="stock", limit=4 * program.count())
    parts = save(program, tmp_path / "parts", destination="stock", limit=0, capture=huggingface.load)
    assert parts.facts["error"]["relative"] < 1e-5
    assert "transformers loaded the folder" in whole.facts["check"]
    assert "in float32, and the limit was 0 MiB: graphprune read the folder again" in parts.facts["check"]
    assert "transformers did not load it" in parts.facts["check"]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_what_is_wrong_is_noticed_in_parts_too(loaded: Narrow, narrowed: Narrow, tmp_path: Path) -> None:
    options: Any = {"destination": "stock", "limit": 0, "capture": huggingface.load}
    with pytest.raises(ExportError, match="the folder, read again, does not agree with the pruned program"):
        save(loaded("llama", **ONE, rms_norm_eps=0.1), tmp_path / "out", **options)
    with pytest.raises(ExportError, match="only one of its class and the program has inputs attention_mask"):
        save(narrowed("llama", **ONE), tmp_path / "out", **options)
    with pytest.raises(ExportError, match="more than the limit of .* no function was passed that reads it in"):
        save(narrowed("llama", **ONE), tmp_path / "out", destination="stock", limit=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_read_again(narrowed: Narrow, tmp_path: Path) -> None:
    def harmed(folder: Path) -> Program:
        (folder / "model.safetensors").write_bytes(b"")
        return huggingface.load(folder)

    with pytest.raises(ExportError, match=r"the saved folder cannot be read again .*\(0 bytes\) is truncated"):
        save(narrowed("llama"), tmp_path / "out", destination="stock", limit=0, capture=harmed)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_needs_force(narrowed: Narrow, tmp_path: Path) -> None:
    program, out = narrowed("llama", **ONE), tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(ExportError, match="exists already; choose another output or pass --force"):
        save(program, out, destination="stock")
    assert (out / "precious").read_text() == "x"
    save(program, out, destination="stock", force=True)
    assert not (out / "precious").exists()


def test_widths_that_no_config_has_leave_nothing(narrowed: Narrow, tmp_path: Path) -> None:
    program = narrowed("mobilenet", depth_multiplier=0.2)
    with pytest.raises(ExportError, match="no field of MobileNetV2Config"):
        save(program, tmp_path / "out", destination="stock")
    assert list(tmp_path.iterdir()) == []


def test_force_keeps_the_old_folder_when_saving_fails(narrowed: Narrow, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(ExportError):
        save(narrowed("mobilenet", depth_multiplier=0.2), tmp_path / "out", destination="stock", force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "precious"]


def test_nan_weights_are_not_saved(narrowed: Narrow, tmp_path: Path) -> None:
    program = narrowed("llama", **ONE)
    bad = {"model.norm.weight": torch.full((32,), torch.nan)}
    with pytest.raises(ExportError, match=r"model.norm.weight holds NaN or infinity as float32; nothing was"):
        save(replace(program, weights=Layered((bad, program.weights))), tmp_path / "out", destination="stock")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_too_large_for_the_type_of_the_file_are_not_saved(narrowed: Narrow, tmp_path: Path) -> None:
    program = narrowed("llama", torch.float16, **ONE)
    large = {"model.norm.weight": torch.full((32,), 70000.0)}
    with pytest.raises(ExportError, match=r"model.norm.weight holds NaN or infinity as float16.* too large for"):
        save(replace(program, weights=Layered((large, program.weights))), tmp_path / "out", destination="stock")


def test_a_class_that_computes_something_else_is_noticed(narrowed: Narrow, tmp_path: Path) -> None:
    program = narrowed("llama", **ONE, rms_norm_eps=0.1)  # an attribute that no shape shows
    with pytest.raises(ExportError, match=r"the reloaded model does not agree .* \(tolerance 1e-03\); nothing"):
        save(program, tmp_path / "out", destination="stock")
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_python_has_no_folder(tmp_path: Path) -> None:
    program = trace(nn.Linear(3, 4), (torch.randn(2, 3),))
    with pytest.raises(ExportError, match=r"was not loaded from a Hugging Face folder.*use destination free"):
        save(program, tmp_path / "out", destination="stock")


def test_a_program_of_another_model_is_refused(narrowed: Narrow, tmp_path: Path) -> None:
    other = narrowed("opt", ffn_dim=20)
    program = replace(narrowed("llama", **ONE), source=other.source)
    with pytest.raises(ExportError, match=r"OPTForCausalLM has no parameter 'model\.embed_tokens\.weight'"):
        save(program, tmp_path / "out", destination="stock")


def test_a_hidden_size_can_be_cut_for_stock_classes(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved("llama", num_hidden_layers=1)
    exact = gp.prune(folder, recipe="magnitude", sparsity=0.2, align=1, output=tmp_path / "exact")
    assert not any(before == 32 for before, _ in exact.report.widths.values())
    made = gp.prune(folder, recipe="magnitude", sparsity=0.25, align=1, exact_only=False, output=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["hidden_size"] < 32 and config["head_dim"] == 4
    assert made.report.errors["masked original and cut graph"] <= 1e-5
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.hidden_size == config["hidden_size"]
