"""ExecuTorch programs, run by ExecuTorch's own runtime and compared with the model."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import graphprune as gp
from graphprune.errors import ExportError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.export_folders.folder_check import verify_folder

pytest.importorskip("executorch", reason="needs graphprune[executorch]")

Save = Callable[..., Path]
ONE = {"num_hidden_layers": 1}


def export(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return EXPORTERS["executorch"].export(source, output, ExportOptions(**options)).facts


def test_a_decoder_with_its_cache_inside_writes_what_the_model_writes(saved: Save, tmp_path: Path) -> None:
    """Token by token, and called as its users call it."""
    source = saved("llama", **ONE)
    facts = export(source, tmp_path / "x", static={"past": 30})
    parity = facts["parity"]["executorch"]
    assert parity["worst"] < 5e-4 and "the likeliest text after 4 tokens" in parity["cases"]
    assert facts["methods"]["get_max_context_len"] == 30 and facts["operators"]["executorch_call_delegate"] > 3
    verified = verify_folder(tmp_path / "x")
    assert verified.kind == "executorch" and verified.max_error == pytest.approx(parity["worst"], rel=0.5)
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    method = import_module("executorch.runtime").Runtime.get().load_program(tmp_path / "x" / "model.pte")
    step, ids = method.load_method("forward"), torch.tensor([[3, 14, 15]])
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    for place in range(14):
        logits = step.execute([ids[:, place : place + 1].contiguous(), torch.tensor([place])])[0]
        if place >= 2:
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids, expected)


def test_a_prompt_in_parts_and_other_positions(saved: Save, tmp_path: Path) -> None:
    """OPT finds positions by itself; several tokens go in at once."""
    facts = export(saved("opt", **ONE), tmp_path / "x", static={"past": 24, "sequence": 5})
    assert facts["methods"]["enable_dynamic_shape"] and facts["parity"]["executorch"]["worst"] < 5e-4
    assert verify_folder(tmp_path / "x").max_error is not None


def test_layers_of_different_widths(uneven: Save, tmp_path: Path) -> None:
    assert export(uneven(), tmp_path / "x", static={"past": 24})["parity"]["executorch"]["worst"] < 5e-4


@pytest.mark.parametrize(("kind", "static"), [("bert", {"sequence": 6}), ("resnet", {}), ("vit", {"batch": 2})])
def test_models_without_a_cache(saved: Save, tmp_path: Path, kind: str, static: dict[str, int]) -> None:
    facts = export(saved(kind), tmp_path / "x", static=static)
    assert facts["parity"]["executorch"]["worst"] < 5e-4 and len(facts["parity"]["executorch"]["cases"]) >= 3
    assert verify_folder(tmp_path / "x").max_error is not None


def test_the_graph_of_a_network_of_ones_own(images: Path, tmp_path: Path) -> None:
    made = gp.export(images, target="executorch", output=tmp_path / "x")
    assert made.facts["parity"]["executorch"]["worst"] < 1e-5 and made.facts["source"] == str(images)
    assert f"it agrees with the model in {images}" in gp.verify_folder(tmp_path / "x").checks


@pytest.mark.parametrize("static", [{"batch": 2}, {"sequence": 8, "past": 8}, {"past": 65}, {"past": 0}])
def test_sizes_that_do_not_fit_a_decoder(saved: Save, tmp_path: Path, static: dict[str, int]) -> None:
    with pytest.raises(ExportError, match="expected batch=1, sequence=N tokens a call, and .* at most 64"):
        export(saved("llama", **ONE), tmp_path / "x", static=static)


def test_a_text_needs_a_length(saved: Save, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="do not fit this model: pass batch=N,sequence=N"):
        export(saved("bert", **ONE), tmp_path / "x")


@pytest.mark.parametrize(("kind", "static"), [("llama", {"past": 24}), ("bert", {"sequence": 6})])
def test_linear_layers_in_8_bits(saved: Save, tmp_path: Path, kind: str, static: dict[str, int]) -> None:
    """A head that shares its weight with the table does not change the table."""
    source = saved(kind, **ONE, hidden_size=64, intermediate_size=96)
    facts = export(source, tmp_path / "x", quant="int8", static=static)
    parity = facts["parity"]["executorch"]
    assert 1e-4 < parity["worst"] < 0.05 and facts["bytes"] < 4 * facts["parameters"]
    assert verify_folder(tmp_path / "x").max_error == pytest.approx(parity["worst"], rel=1e-2)


def test_four_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"target executorch cannot be made with quant int4; it takes quant \(int8\)"):
        export(tmp_path, tmp_path / "x", quant="int4")


def test_a_damaged_file(saved: Save, tmp_path: Path) -> None:
    out = tmp_path / "x"
    size = export(saved("resnet"), out)["bytes"]
    (out / "model.pte").write_bytes(bytes(size))
    with pytest.raises(VerificationError, match=r"ExecuTorch cannot open model.pte .*; export it again"):
        verify_folder(out)
