"""Stored weights are read into no more memory than they take, and what cannot be read is one clear error."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import graphprune as gp
from graphprune.errors import GraphpruneError, LoadError
from graphprune.ir.weights import Masked, Narrowed, Scaled, Stored, file_stamp
from graphprune.support.memory import STATUS, anonymous_bytes, watch_peak
from graphprune.workflows import saved_folder

MIB = 2**20
linux = pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells mapped files apart")


def stored(path: Path, dtype: torch.dtype, size: int = 16 * MIB) -> Stored:
    """A file with one tensor, to be read as float32."""
    save_file({"a": torch.ones(size // 1024, 1024, dtype=dtype)}, path)
    return Stored({"a": (path, "a")}, torch.float32)


@linux
@pytest.mark.parametrize(("dtype", "held"), [(torch.bfloat16, 64), (torch.float16, 64), (torch.float32, 0)])
def test_reading_holds_the_result_and_no_more(tmp_path: Path, dtype: torch.dtype, held: int) -> None:
    weights = stored(tmp_path / "x", dtype)
    assert weights["a"].shape == (16384, 1024)
    before = anonymous_bytes()
    with watch_peak() as peak:
        for _ in range(20):
            tensor = weights["a"]
            assert tensor.sum() == 16 * MIB
            assert abs(anonymous_bytes() - before - held * MIB) < 4 * MIB
            del tensor
    assert peak.bytes - before < (held + 4) * MIB
    assert anonymous_bytes() - before < 4 * MIB and str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_whether_a_weight_is_there_is_known_without_reading(tmp_path: Path) -> None:
    weights = Stored({"a": (tmp_path / "none", "a")})
    for over in (Scaled(weights, {}), Narrowed(weights, {}), Masked(weights, {})):
        assert "a" in over and "b" not in over and list(over) == ["a"] and len(over) == 1


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_file({"a": torch.ones(8)}, path)
    weights = Stored({"a": (path, "a")}, stamps={path: file_stamp(path)})
    assert weights["a"].sum() == 8
    save_file({"a": torch.zeros(8)}, path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(LoadError, match="x has changed since it was opened; do not change it while it is read, and"):
        weights["a"]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    """Flip a bit in the table of contents."""
    found = bytearray(path.read_bytes())
    found[9] ^= 0x40
    path.write_bytes(found)


@pytest.mark.parametrize("harm", [cut_short, flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_is_harmed_while_it_is_read(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    path = tmp_path / "x"
    save_file({"a": torch.ones(8)}, path)
    weights = Stored({"a": (path, "a")})
    harm(path)
    with pytest.raises(LoadError, match="x holds no a that can be read .*truncated, damaged or missing: copy it again"):
        weights["a"]


def test_a_folder_that_is_harmed_between_loading_and_pruning(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(folder, source)
    program = gp.load(source)
    cut_short(source / "model.safetensors")
    with pytest.raises(LoadError, match="model.safetensors has changed since it was opened"):
        gp.plan(program, sparsity=0.2, recipe="magnitude")
    with pytest.raises(LoadError, match=r"model.safetensors \(\d+ bytes\) is truncated or no safetensors file"):
        gp.load(source)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("magnitude", "model.embed_tokens.weight"), ("fasp", "model.layers.1.mlp.down_proj.weight")],
)
def test_a_bit_that_makes_a_number_infinite(
    name: str, recipe: str, tiny: Callable[..., Any], folder: Path, text: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    shutil.copytree(folder, source)
    tiny("llama", tie_word_embeddings=False).save_pretrained(source)
    weights = load_file(source / "model.safetensors")
    flat = weights[name].clone()
    flat.view(torch.int32)[-1, -1] = 0x7F800000  # all bits of the exponent: of a word that inputs may not hold
    save_file({**weights, name: flat}, source / "model.safetensors", {"format": "pt"})
    options: Any = {"sparsity": 0.1, "align": 1, "calibration": text, "samples": 16, "length": 8}
    with pytest.raises(GraphpruneError, match="not finite|NaN"):
        gp.prune(source, output=tmp_path / "out", recipe=recipe, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_limit_is_heeded_by_all_destinations_with_a_class(folder: Path, tmp_path: Path) -> None:
    program = gp.load(folder)
    small = gp.apply(program, gp.plan(program, ratio=0.5, destination="stock"))
    for limit, said in ((None, "reloaded folder and"), (0, "folder read again in parts and")):
        path = tmp_path / str(limit)
        path.mkdir()
        ((what, error),) = saved_folder.write(small, path, "stock", limit=limit, shard_bytes=10_000)
        assert what == f"{said} rewritten graph" and error < 1e-6
        assert len(list(path.glob("*.safetensors"))) > 1
