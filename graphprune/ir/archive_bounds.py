"""Bounds of saved programs: what a file claims to hold is compared with its size before any of it is read."""

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import LoadError

MAX_RECORDS = 250_000
MAX_JSON_BYTES = 2**28
MAX_DEPTH = 100
MAX_LEAVES = 100_000
MAX_REPEATED = 2**24  # elements of tensors that are larger than their storage, all together

#: Names that torch needs to read tensors in plain containers.
_PICKLED = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch\.storage UntypedStorage"
    r"|collections OrderedDict|torch (Size|device|bool|[a-z]*float\w*|u?int\d+|complex\d+)"
    r"|torch\.serialization _get_layout|torch\.nn\.parameter Parameter"
)
Source = Path | io.BytesIO
Refuse = Callable[[object, str], None]


def check_records(source: Source, size: int) -> None:
    """Compare the declared sizes of all records of an archive with the size of its file; nothing is unpacked.

    torch does not compress records, so together they are smaller than the file.

    Raises:
        LoadError: if there are too many records, if a name occurs twice, or if they claim more than the file holds.
    """
    reader = torch._C.PyTorchFileReader(str(source) if isinstance(source, Path) else source)
    names = reader.get_all_records()
    if len(names) > MAX_RECORDS:
        raise LoadError(f"it has {len(names):,} records, expected at most {MAX_RECORDS:,}")
    if len(set(names)) < len(names):
        raise LoadError("a record occurs twice in it")
    declared = sum(map(reader.get_record_size, names))
    if declared > size:
        raise LoadError(
            f"its records claim {declared:,} bytes, more than the {size:,} bytes of the file: it is compressed, or "
            "damaged; save it again with torch.export.save, which does not compress"
        )


def check_contents(file: Path) -> None:
    """Compare all records of an archive with their checksums, which torch does not.

    Raises:
        LoadError: if one was damaged.
    """
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise LoadError(
            f"its record {damaged!r} does not have the checksum that was stored with it: the file was damaged; copy it "
            "again, or save it again with torch.export.save"
        )


def parsed(content: bytes | str) -> Any:
    """The value of a JSON record.

    Raises:
        LoadError: if it is too long or nested too deeply.
    """
    if len(content) > MAX_JSON_BYTES:
        raise LoadError(f"a record of JSON has {len(content):,} bytes, expected at most {MAX_JSON_BYTES:,}")
    try:
        return json.loads(content)
    except RecursionError as fault:
        raise LoadError("its JSON is nested too deeply") from fault


def check_payloads(payloads: Mapping[str, Any], size_of: Callable[[str], int]) -> None:
    """Compare the shapes of tensors with the sizes of their records, by the entries of a configuration.

    Raises:
        LoadError: if a record is empty, which torch reads as zeros, or views repeat the elements of small records too
            often.
    """
    repeated = 0
    for name, payload in payloads.items():
        shape = [int(size["as_int"]) for size in payload["tensor_meta"]["sizes"]]
        stored = size_of(payload["path_name"])
        if prod(shape) and not stored:
            raise LoadError(
                f"the record of {name} is empty, expected the numbers of a tensor of shape {shape}; save the program "
                "again with its weights"
            )
        repeated += prod(shape) if prod(shape) > stored else 0
    _check_repeated(repeated)


def check_pickle(content: bytes) -> bool:
    """Whether a saved value, in the format of archives, names nothing but tensors and plain containers.

    Raises:
        LoadError: if its records claim more bytes than there are.
    """
    if not content.startswith(b"PK"):
        return False  # the old format allocates what it declares
    check_records(io.BytesIO(content), len(content))
    pickled = torch._C.PyTorchFileReader(io.BytesIO(content)).get_record("data.pkl")
    named = [argument for code, argument, _ in pickletools.genops(pickled) if code.name in ("GLOBAL", "INST")]
    return all(_PICKLED.fullmatch(str(name)) for name in named)


def check_value(value: Any) -> None:
    """Check that a value has a bounded number of parts, and tensors that are not much larger than their storage.

    Raises:
        LoadError: otherwise.
    """
    repeated, count = 0, 0
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        count += len(level)
        if count > MAX_LEAVES:
            raise LoadError(f"its example inputs have more than {MAX_LEAVES:,} parts")
        tensors = [item for item in level if isinstance(item, Tensor) and item.layout is torch.strided]
        repeated += sum(t.numel() for t in tensors if t.numel() * t.itemsize > t.untyped_storage().nbytes())
        level = [part for item in level for part in _inside(item)]
        if not level:
            return _check_repeated(repeated)
    raise LoadError("its example inputs are nested too deeply")


def _inside(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list | tuple | set | frozenset) else ()


def _check_repeated(elements: int) -> None:
    if elements > MAX_REPEATED:
        raise LoadError(f"its tensors claim {elements:,} more elements than it holds")
