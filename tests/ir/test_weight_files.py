"""Files that are written a tensor at a time are those of the library, byte for byte."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.ir.weight_files import DTYPE_NAMES, write_file, write_shards


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    """A tensor of random bits."""
    size = torch.empty(shape, dtype=dtype).nbytes
    if dtype == torch.bool:
        return torch.randint(0, 2, shape).bool()
    return torch.randint(0, 256, (size,), dtype=torch.uint8).view(dtype).view(shape)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """All types, and all shapes that are special; a name that is no ASCII, and one with a quote."""
    torch.manual_seed(0)
    every = {f"every.{name}": drawn(dtype, 3, 5) for dtype, name in DTYPE_NAMES.items()}
    shapes = {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), 'ä "quoted"': torch.arange(3)}
    return {**every, **shapes, "turned": torch.randn(4, 6).T, "part": torch.randn(9)[2:5]}


def test_the_bytes_are_those_of_the_library(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "theirs", metadata={"format": "pt"})
    write_file(tmp_path / "ours", tensors, tensors.__getitem__)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, tensor in load_file(tmp_path / "ours").items():
        flat = tensors[name].contiguous().view(-1)
        assert tensor.dtype == flat.dtype and tensor.shape == tensors[name].shape
        assert torch.equal(tensor.view(-1).view(torch.uint8), flat.view(torch.uint8))


def test_tensors_are_read_once_and_cast(tmp_path: Path) -> None:
    reads = []

    def read(name: str) -> Tensor:
        reads.append(name)
        return torch.full((8,), 1 / 3)

    skeleton = {f"t{i}": torch.empty(8, dtype=torch.bfloat16, device="meta") for i in range(5)}
    write_shards(tmp_path, skeleton, read, limit=32)
    assert sorted(reads) == sorted(skeleton)
    table = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(table["weight_map"].values())) == 3 and table["weight_map"].keys() == skeleton.keys()
    for name, file in table["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], torch.full((8,), 1 / 3, dtype=torch.bfloat16))


def test_other_shapes_and_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"a has shape \(3,\), expected \(2,\)"):
        write_file(tmp_path / "x", {"a": torch.zeros(2)}, lambda _: torch.zeros(3))
    with pytest.raises(ExportError, match=r"a is of type torch.complex128, which safetensors files cannot hold"):
        write_file(tmp_path / "x", {"a": torch.zeros(2, dtype=torch.complex128)}, lambda _: torch.zeros(2))
