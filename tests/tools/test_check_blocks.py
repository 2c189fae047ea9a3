"""The check of a saved Llama agrees with transformers, and notices what does not."""

from pathlib import Path

import pytest

from tools import check_blocks, make_random_model

SIZES = ["--hidden", "32", "--layers", "3", "--heads", "4", "--kv-heads", "2", "--intermediate", "48", "--vocab", "64"]


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    make_random_model.main([*SIZES, "--tokenizer", str(folder), "--output", str(tmp_path / "a"), "--shard", "1e-5"])
    return tmp_path / "a"


def test_a_folder_in_shards_of_bfloat16_is_what_its_files_say(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        check_blocks.main([str(saved), "--tokens", "9"])
    assert left.value.code == 0
    assert "block 1 of 3" in capsys.readouterr().out


def test_a_block_that_computes_something_else_is_noticed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_blocks, "turned", lambda x, config: x)
    with pytest.raises(SystemExit) as left:
        check_blocks.main([str(saved), "--tokens", "9"])
    assert left.value.code == 1
