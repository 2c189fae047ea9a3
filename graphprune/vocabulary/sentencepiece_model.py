"""SentencePiece files: pieces of a protobuf message, without those that are removed."""

from collections.abc import Container, Iterator
from dataclasses import dataclass

_PIECE, _TRAINER = 1, 2  # fields of the message
_TEXT, _KIND = 1, 3  # fields of a piece
_VOCABULARY, _SPECIAL = 4, range(40, 44)  # fields of the trainer's settings: a size, and identifiers
_NORMAL, _USER = 1, 4  # kinds of pieces
_VARINT, _DOUBLE, _BYTES, _SINGLE = 0, 1, 2, 5  # kinds of values


@dataclass(frozen=True)
class _Value:
    """Value of a message with its field; `raw` is the whole of it in the file."""

    field: int
    kind: int
    value: bytes | int
    raw: bytes


def reduced(content: bytes, retained: Container[str]) -> bytes:
    """The content of a file with the retained pieces, and those that are no text: unknown, control and bytes.

    Raises:
        ValueError: if it is no such file, or an identifier in its settings would change.
    """
    values = list(_values(content))
    pieces = [value for value in values if value.field == _PIECE]
    keep = [_stays(value, retained) for value in pieces]
    removed = {id(value) for value, stays in zip(pieces, keep, strict=True) if not stays}
    if not pieces:
        raise ValueError("it has no pieces")
    return b"".join(
        _settings(value, keep) if value.field == _TRAINER else value.raw for value in values if id(value) not in removed
    )


def texts(content: bytes) -> list[str]:
    """Texts of the pieces that spell text: not of control, unknown and byte pieces, nor of those of the user.

    Raises:
        ValueError: if it is no such file.
    """
    return [_text(value) for value in _values(content) if value.field == _PIECE and _kind(value) == _NORMAL]


def _text(piece: _Value) -> str:
    return next(bytes(_inner(value)).decode() for value in _values(_inner(piece)) if value.field == _TEXT)


def _kind(piece: _Value) -> bytes | int:
    return next((value.value for value in _values(_inner(piece)) if value.field == _KIND), _NORMAL)


def _stays(piece: _Value, retained: Container[str]) -> bool:
    return _kind(piece) not in (_NORMAL, _USER) or _text(piece) in retained


def _settings(trainer: _Value, keep: list[bool]) -> bytes:
    """Settings of the trainer with the new number of pieces."""
    content = b""
    for value in _values(_inner(trainer)):
        number = value.value if value.field in _SPECIAL and isinstance(value.value, int) else 0
        before = keep[:number] if number < len(keep) else []  # -1, a large number without its sign, names no piece
        if not all(before):
            raise ValueError(f"the identifier {value.value!r} in its settings would change")
        size = value.field == _VOCABULARY and value.kind == _VARINT
        content += _tag(value) + _number(sum(keep)) if size else value.raw
    return _tag(trainer) + _number(len(content)) + content


def _inner(value: _Value) -> bytes:
    if not isinstance(value.value, bytes):
        raise ValueError(f"field {value.field} is a number")
    return value.value


def _tag(value: _Value) -> bytes:
    return _number(value.field << 3 | value.kind)


def _number(value: int) -> bytes:
    """A number in groups of seven bits."""
    groups = b""
    while value > 127:
        groups += bytes([value & 127 | 128])
        value >>= 7
    return groups + bytes([value])


def _values(content: bytes) -> Iterator[_Value]:
    """Values of a message in their order."""
    at = 0
    while at < len(content):
        start = at
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == _VARINT:
            value: bytes | int
            value, at = _varint(content, at)
        else:
            size, at = _varint(content, at) if kind == _BYTES else ({_DOUBLE: 8, _SINGLE: 4}.get(kind, -1), at)
            if size < 0 or at + size > len(content):
                raise ValueError("it is no message of this kind")
            value, at = content[at : at + size], at + size
        yield _Value(tag >> 3, kind, value, content[start:at])


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number and the place behind it."""
    value = shift = 0
    while at < len(content):
        value |= (content[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if content[at - 1] < 128:
            return value, at
    raise ValueError("it ends inside a number")
