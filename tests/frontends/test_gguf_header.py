"""Headers of GGUF files: whatever is damaged in one, the walk through it ends at once."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphprune.errors import LoadError
from graphprune.frontends import gguf_header
from tests.frontends.test_gguf import write


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write(path)
    gguf_header.check(path)
    return path.read_bytes()


def _refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        gguf_header.check(path)
    except LoadError:
        return True
    return False


@settings(max_examples=40, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 8))
def test_flipped_bits(content: bytes, tmp_path: Path, seed: int, flips: int) -> None:
    chance, damaged = random.Random(seed), bytearray(content)
    for _ in range(flips):
        damaged[chance.randrange(2_000)] ^= 1 << chance.randrange(8)
    _refused(tmp_path / "x.gguf", bytes(damaged))  # a LoadError or nothing, and soon


@settings(max_examples=40, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.03))
def test_a_truncated_header(content: bytes, tmp_path: Path, share: float) -> None:
    assert _refused(tmp_path / "x.gguf", content[: 4 + int(len(content) * share)])


@pytest.mark.parametrize("at", [4, 8, 16, 24], ids=["version", "tensors", "entries", "length of a name"])
def test_endless_counts(content: bytes, tmp_path: Path, at: int) -> None:
    assert _refused(tmp_path / "x.gguf", content[:at] + b"\xff" * 7 + content[at + 7 :])
