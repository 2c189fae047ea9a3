"""Batches of a file of arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphprune.errors import CalibrationError
from graphprune.statistics.array_batches import array_batches


def test_batches_have_the_names_of_inputs(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    arrays: dict[str, Any] = {"image": np.zeros((40, 3)), "past.0": np.ones((40, 2))}
    np.savez(file, **arrays)
    first, second = array_batches(file)
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == {"image": (32, 3), "past_0": (32, 2)}
    assert len(second["image"]) == 8


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    file.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CalibrationError, match=r"data.npz is no readable file of NumPy arrays.*numpy.savez"):
        array_batches(file)
    np.savez(file, a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(CalibrationError, match="a 3, b 4 samples; expected arrays"):
        array_batches(file)
    np.savez(file, a=np.array([{}], dtype=object))
    with pytest.raises(CalibrationError, match="allow_pickle"):
        array_batches(file)
