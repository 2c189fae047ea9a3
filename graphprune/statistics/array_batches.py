"""Batches of a file of NumPy arrays."""

import re
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import CalibrationError, because

SIZE = 32  # samples in a batch


def array_batches(file: Path) -> list[dict[str, Tensor]]:
    """Batches of the arrays in an ``.npz`` file, by the names of the inputs; the first dimension counts samples.

    Names that are no identifiers of Python, as ``past.0``, are those of the program's inputs: ``past_0``.

    Raises:
        CalibrationError: if the file cannot be read, is empty, or its arrays have different numbers of samples.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tensors = {re.sub(r"\W", "_", name): torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, TypeError, BadZipFile) as fault:
        raise CalibrationError(
            f"{file} is no readable file of NumPy arrays{because(fault)}; write it with numpy.savez(file, name=array)"
        ) from fault
    counts = {name: len(tensor) if tensor.dim() else 0 for name, tensor in tensors.items()}
    if not counts or len(set(counts.values())) > 1 or not min(counts.values()):
        held = ", ".join(f"{name} {count}" for name, count in counts.items()) or "no array"
        raise CalibrationError(
            f"{file} holds {held} samples; expected arrays whose first dimension is the same number of samples"
        )
    total = next(iter(counts.values()))
    return [{name: tensor[i : i + SIZE] for name, tensor in tensors.items()} for i in range(0, total, SIZE)]
