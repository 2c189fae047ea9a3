"""Outputs appear complete or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from graphprune.errors import ExportError
from graphprune.support.atomic_output import check_output, new_file, new_folder, remove_unfinished, write_durably


def test_a_folder_gets_its_name_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with new_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "f").write_text("x")
        assert not out.exists()
        assert folder.parent == out.parent
    assert (out / "sub" / "f").read_text() == "x"
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_failed_one(tmp_path: Path, fault: type[BaseException]) -> None:
    with pytest.raises(fault), new_folder(tmp_path / "new" / "parents" / "out") as folder:
        (folder / "f").write_text("x")
        raise fault
    assert os.listdir(tmp_path) == []


def test_an_existing_output_needs_force(tmp_path: Path) -> None:
    words = r"out exists already; choose another output or pass --force to replace it"
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=words), new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(ExportError, match=words):
        check_output(tmp_path / "out")


def test_force_replaces_only_with_a_complete_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(KeyboardInterrupt), new_folder(out, force=True):
        raise KeyboardInterrupt
    assert os.listdir(out) == ["old"]
    with new_folder(out, force=True) as folder:
        (folder / "new").touch()
    assert os.listdir(out) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_the_working_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "here")
    for output in (".", "..", str(tmp_path / "in"), "/"):
        with pytest.raises(ExportError, match=r"is never replaced|cannot be an output"):
            check_output(output, force=True)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link", force=True) as folder:
        (folder / "f").touch()
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["f"]


def test_files_and_folders_are_not_confused(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(ExportError, match="is a file; name a folder"):
        check_output(tmp_path / "f", force=True)
    with pytest.raises(ExportError, match="is a folder; name a file in it"), new_file(tmp_path, force=True):
        pytest.fail("the block must not run")
    with pytest.raises(ExportError, match="cannot write to .*: not a folder"), new_file(tmp_path / "f" / "g"):
        pytest.fail("the block must not run")


def test_a_file_gets_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f.json"
    with pytest.raises(KeyboardInterrupt), new_file(path) as file:
        file.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with new_file(path) as file:
        assert file.suffix == ".json"
        file.write_text("whole")
    assert path.read_text() == "whole"
    with pytest.raises(ExportError, match="pass --force"), new_file(path):
        pytest.fail("the block must not run")


def test_what_a_kill_left_is_removed_and_what_was_being_replaced_is_back(tmp_path: Path) -> None:
    for name in (".unfinished-12345678-out", ".unfinished-12345678-out.old", ".unfinished-12345678-out2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    remove_unfinished(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [".unfinished-12345678-out2", "out"], (
        "another output is none of its business"
    )
    assert (tmp_path / "out" / "f").read_text().endswith(".old")


def test_a_small_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.json"
    write_durably(path, "old")
    write_durably(path, "n\u00e9w\n")
    assert path.read_bytes() == "n\u00e9w\n".encode() and os.listdir(tmp_path) == ["table.json"]

    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, "newer")
    assert path.read_bytes() == "n\u00e9w\n".encode()


@pytest.mark.parametrize("make", [new_folder, new_file])
def test_a_full_disk_is_said_to_be_one(tmp_path: Path, make: Any) -> None:
    with (
        pytest.raises(ExportError, match=r"cannot write .*out: No space left on device; free some space"),
        make(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), make(tmp_path / "out"):
        (tmp_path / "none").read_text()
    assert os.listdir(tmp_path) == []
