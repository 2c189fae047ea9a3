"""Checksums of values in memory."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def checksum(values: Iterable[Any]) -> str:
    """A hash of the types, shapes and elements of tensors, and of the text of all other values."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]
