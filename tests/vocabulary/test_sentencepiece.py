"""SentencePiece files lose the pieces that are removed, and nothing else."""

import struct

import pytest

from graphprune.vocabulary.sentencepiece_model import reduced, texts

CONTROL, UNKNOWN, BYTE = 3, 2, 6


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protobuf message; numbers are below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def piece(text: str, kind: int = 1) -> bytes:
    """A piece with its score."""
    score = bytes([2 << 3 | 5]) + struct.pack("<f", -1.5)
    return field(1, field(1, text.encode()) + score + (field(3, kind) if kind != 1 else b""))


def file(*pieces: bytes, pad: bytes = b"\0") -> bytes:
    """A file with settings of a trainer and a part that is not read."""
    identifiers = b"".join(bytes([0xC0 + 8 * i, 2]) + (pad if i == 3 else b"\0") for i in range(4))  # fields 40 to 43
    return b"".join((*pieces, field(2, field(4, len(pieces)) + identifiers), field(3, field(1, b"nmt"))))


def test_pieces_and_their_number_follow() -> None:
    whole = (piece("<unk>", UNKNOWN), piece("<s>", CONTROL), piece("▁the"), piece("▁там"), piece("<0x0A>", BYTE))
    few = reduced(file(*whole), {"▁the"})
    assert few == file(*whole[:3], whole[4])
    assert texts(few) == ["▁the"]


def test_an_identifier_that_would_move_is_refused() -> None:
    with pytest.raises(ValueError, match="identifier 2 in its settings would change"):
        reduced(file(piece("<unk>", UNKNOWN), piece("a"), piece("<pad>", CONTROL), pad=b"\2"), set())


def test_an_identifier_that_names_no_piece_is_as_it_was() -> None:
    """A tokenizer without padding has the identifier -1, a number of ten bytes."""
    none = b"\xff" * 9 + b"\1"
    whole = (piece("<unk>", UNKNOWN), piece("a"), piece("b"))
    assert reduced(file(*whole, pad=none), {"a"}) == file(*whole[:2], pad=none)


@pytest.mark.parametrize("content", [b"", b"\x0a\xff", b"PK\x03\x04zip", file(piece("a"))[:5]])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        reduced(content, {"a"})
