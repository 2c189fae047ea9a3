"""Streams of documents: texts, and texts with labels, from files that are never in memory as a whole."""

import gzip
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from typing import IO, Any

from graphprune.errors import LoadError, because
from graphprune.statistics.data_files import PYDOC, TEXTS
from graphprune.support.packages import load

BLOCK = 1 << 16  # characters of a plain text that are read at once
_RANGE = re.compile(r"(?P<path>.+)\[(?P<start>\d*):(?P<end>\d*)\]")


@dataclass(frozen=True)
class Document:
    """Text with its label, if it has one. `ends` is False for a part of a text that continues in the next one."""

    text: str
    label: Any = None
    ends: bool = True


def documents(name: str | Path, lines: bool = False, labels: Collection[str] = ()) -> Iterator[Document]:
    """Stream the documents of a text by its name (see `texts.read`), or of a .parquet file with a column "text".

    A plain text is one document; it comes in parts of some lines. With `lines`, each of its lines is a document, also
    those of a .tsv file, whose first column is the text and whose last one the label: a number, or one of `labels`.

    Raises:
        LoadError: if the text does not exist, or cannot be read.
    """
    name = str(name)
    if name in PYDOC:
        yield from map(Document, pydoc(name))
        return
    found = _RANGE.fullmatch(name)
    part = found if found is not None and not Path(name).exists() else None
    path = Path(part["path"] if part else name)
    if not path.is_file():
        near = "is a folder" if path.is_dir() else "does not exist"
        raise LoadError(f"the text {path} {near}; expected {TEXTS}")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    readers: dict[str, Callable[[Path], Iterator[Document]]] = {"jsonl": _objects, "parquet": _rows}
    if lines:
        readers["tsv"] = partial(_table, labels)
    read = readers.get(kind)
    if read is None and lines:
        read = _lines
    if read is None:
        if part:
            raise LoadError(
                f"{path} is one text, so it has no documents {int(part['start'] or 0)} to {part['end'] or None}; only "
                "a .jsonl file has"
            )
        yield from _parts(path)
        return
    every = read(path)
    yield from _range(path, every, part["start"], part["end"]) if part else every


def pydoc(name: str) -> list[str]:
    """Topics of pydoc in alphabetical order; the first half ends with the topic that contains the middle."""
    texts = [topics[key] for key in sorted(topics)]
    half, first, before = sum(map(len, texts)) / 2, 0, 0
    while before < half:
        before += len(texts[first])
        first += 1
    return {"pydoc": texts, "pydoc:first": texts[:first], "pydoc:second": texts[first:]}[name]


def _parts(path: Path) -> Iterator[Document]:
    """Parts of a plain text, each of some lines, or of a line that is very long."""
    with _opened(path) as file:
        before = ""
        while block := _read(path, file):
            end = block.rfind("\n") + 1
            if end and before:
                yield Document(before + block[:end], ends=False)
            elif end:
                yield Document(block[:end], ends=False)
            before = block[end:] if end else before + block
        yield Document(before)


def _read(path: Path, file: IO[str]) -> str:
    try:
        return file.read(BLOCK)
    except (OSError, EOFError, UnicodeDecodeError) as fault:
        raise _unreadable(path, fault) from fault


def _unreadable(path: Path, fault: Exception) -> LoadError:
    return LoadError(f"cannot read the text {path}{because(fault)}; expected {TEXTS}, in UTF-8")


def _opened(path: Path) -> IO[str]:
    """Open a text, whose lines end with a line feed alone."""
    open_text: Any = gzip.open if path.suffix == ".gz" else open
    try:
        opened: IO[str] = open_text(path, "rt", encoding="utf-8", newline="\n")
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    return opened


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file that are not empty, each with its number."""
    with _opened(path) as file:
        number = 0
        while True:
            try:
                line = file.readline()
            except (OSError, EOFError, UnicodeDecodeError) as fault:
                raise _unreadable(path, fault) from fault
            number += 1
            if not line:
                return
            if line.strip():
                yield number, line


def _lines(path: Path) -> Iterator[Document]:
    """Documents of a plain text, one a line."""
    for _, line in _numbered(path):
        yield Document(line.strip())


def _table(labels: Collection[str], path: Path) -> Iterator[Document]:
    """Documents of lines with a text, a tab and a label; a first line with another label is a heading."""
    for number, line in _numbered(path):
        text, *others = line.rstrip("\r\n").split("\t")
        if not others:
            raise LoadError(f"{path}, line {number}: got {text[:60]!r}, expected a text, a tab and a label")
        if number > 1 or others[-1].strip().isdigit() or others[-1].strip() in labels:
            yield Document(text, others[-1])


def _objects(path: Path) -> Iterator[Document]:
    """Documents of JSON lines."""
    for number, line in _numbered(path):
        try:
            yield _document(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError) as fault:
            raise LoadError(
                f'{path}, line {number}: got {line.rstrip()[:60]!r}, expected an object with a "text"'
            ) from fault


def _rows(path: Path) -> Iterator[Document]:
    """Documents of a parquet file, by the package datasets."""
    datasets = load("datasets")
    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from map(_document, rows)
    except (TypeError, KeyError) as fault:
        raise LoadError(f'{path} has rows without a "text"; expected a column of this name') from fault
    except (OSError, ValueError) as fault:
        raise LoadError(f"cannot read {path}{because(fault)}; expected a parquet file") from fault


def _document(row: Any) -> Document:
    text = row["text"]
    if not isinstance(text, str):
        raise TypeError(text)
    return Document(text, row.get("label"))


def _range(path: Path, every: Iterable[Document], start: str, end: str) -> Iterator[Document]:
    """Documents from `start` to before `end`, all of which must exist."""
    first, last = int(start or 0), int(end) if end else None
    if last is not None and last <= first:
        raise LoadError(f"{path}[{start}:{end}] is empty: the end must be greater than the start")
    stream, count = iter(every), 0
    for document in islice(stream, last):
        count += 1
        if count > first:
            yield document
    if not first < (count if last is None else last) <= count:
        raise LoadError(f"{path} has {count} documents; [{first}:{count if last is None else last}] is no part of them")
