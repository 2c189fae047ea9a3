"""What is measured is what is held; mapped files do not count."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graphprune.support.memory import STATUS, anonymous_bytes, watch_peak

MIB = 2**20


def test_what_was_held_for_a_while_is_seen() -> None:
    before = anonymous_bytes()
    with watch_peak() as peak:
        held = torch.ones(64 * MIB, dtype=torch.uint8)
        for _ in range(20):
            held.add_(1)
        del held
    assert 60 * MIB < peak.bytes - before < 100 * MIB


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells mapped files apart")
def test_mapped_files_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(64 * MIB))
    with watch_peak() as peak:
        before = anonymous_bytes()
        mapped = torch.from_file(str(tmp_path / "zeros"), shared=False, size=64 * MIB, dtype=torch.uint8)
        assert not mapped.any()
    assert peak.bytes - before < 8 * MIB


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells mapped files apart")
def test_what_was_freed_is_returned() -> None:
    code = (
        "import torch; from graphprune.support.memory import anonymous_bytes, trim_memory; freed, kept = [], []\n"
        "for _ in range(2000):\n"  # blocks that are too small for mappings of their own, between others that stay
        "    freed.append(torch.ones(64 * 1024, dtype=torch.uint8)); kept.append(torch.ones(64, dtype=torch.uint8))\n"
        "freed.clear(); before = anonymous_bytes(); trim_memory(); print(before - anonymous_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 60 * MIB


def test_the_peak_is_known_when_the_block_fails() -> None:
    with pytest.raises(ValueError, match="no"), watch_peak() as peak:
        raise ValueError("no")
    assert peak.bytes > 0
