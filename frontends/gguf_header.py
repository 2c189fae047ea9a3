"""Bounds of a GGUF file: what its header claims is compared with its size before a library reads it.

A reader that trusts the counts of a damaged file loops over values that are not there.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from graphprune.errors import LoadError

#: Bytes of a value by the number of its type; texts and arrays have lengths of their own.
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9
_MAX_DIMENSIONS = 8
_LEAST_ENTRY = 13  # bytes of the shortest entry: an empty name, a type and a byte
_ELEMENTS_PER_BYTE = 8  # at most, in the tightest quantization


def check(file: Path) -> int:
    """Number of elements of all tensors of a GGUF file, whose header is walked.

    Raises:
        LoadError: if a count, a length, a type or the place of a tensor does not fit the file.
    """
    with file.open("rb") as opened:
        return _Header(opened, file.stat().st_size).check()


@dataclass
class _Header:
    """The header of an open file of `size` bytes."""

    file: BinaryIO
    size: int
    order: str = "<"

    def check(self) -> int:
        self.file.read(4)
        version = self._number("I")
        if version & 0xFFFF == 0:  # of a machine with the other byte order
            self.order, version = ">", version >> 16 & 0xFF | version >> 24 << 8
        if version not in (2, 3):
            raise LoadError(f"it has version {version}, expected 2 or 3")
        tensors, entries = self._number("Q"), self._number("Q")
        self._require((tensors + entries) * _LEAST_ENTRY, "entries")
        for _ in range(entries):
            self._text()
            self._value(self._number("I"))
        return sum(self._tensor() for _ in range(tensors))

    def _tensor(self) -> int:
        self._text()
        rank = self._number("I")
        if rank > _MAX_DIMENSIONS:
            raise LoadError(f"a tensor has {rank} dimensions, expected at most {_MAX_DIMENSIONS}")
        elements = prod(self._number("Q") for _ in range(rank))
        self._number("I")
        if self._number("Q") > self.size or elements > self.size * _ELEMENTS_PER_BYTE:
            raise LoadError(f"a tensor of {elements:,} elements does not fit into the file")
        return elements

    def _value(self, kind: int) -> None:
        if kind == _TEXT:
            self._text()
        elif kind == _ARRAY:
            self._array()
        elif kind in _BYTES:
            self._skip(_BYTES[kind], "value")
        else:
            raise LoadError(f"a value is of the unknown type {kind}")

    def _array(self) -> None:
        kind, count = self._number("I"), self._number("Q")
        if kind in _BYTES:
            self._skip(_BYTES[kind] * count, "array")
            return
        if kind != _TEXT:
            raise LoadError(f"an array has items of type {kind}, expected numbers or texts")
        self._require(count * 8, "array")
        for _ in range(count):
            self._text()

    def _text(self) -> None:
        self._skip(self._number("Q"), "text")

    def _number(self, code: str) -> int:
        length = struct.calcsize(code)
        content = self.file.read(length)
        if len(content) < length:
            raise LoadError("its header ends early")
        number: int = struct.unpack(self.order + code, content)[0]
        return number

    def _skip(self, length: int, what: str) -> None:
        self._require(length, what)
        self.file.seek(length, 1)

    def _require(self, length: int, what: str) -> None:
        if length > self.size - self.file.tell():
            raise LoadError(f"its header claims {length:,} bytes of {what}, more than the file has")
