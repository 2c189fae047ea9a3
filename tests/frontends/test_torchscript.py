"""TorchScript files are recognized and refused with the ways out."""

from pathlib import Path
from zipfile import ZipFile

import pytest

import graphprune as gp
from graphprune.errors import LoadError


def test_torchscript_file_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    with ZipFile(file, "w") as archive:
        archive.writestr("model/code/__torch__.py", "")
        archive.writestr("model/constants.pkl", b"")
    with pytest.raises(LoadError, match=r"TorchScript file.*dynamo=False.*graphprune.trace"):
        gp.load(file)


def test_other_archive_is_not_taken_for_torchscript(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    with ZipFile(file, "w") as archive:
        archive.writestr("weights/data.pkl", b"")
    with pytest.raises(LoadError, match="the file is of no known kind"):
        gp.load(file)
