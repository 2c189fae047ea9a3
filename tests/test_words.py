"""Public names are plain and occur once: files, classes, and the words that make up a name."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_layers import label, sources

FOLDERS = ("graphprune", "passes", "exporters", "frontends")
PRIVATE_WORDS = {
    "asked", "beside", "dealing", "dealt", "found", "frugal", "goes", "gone", "here", "maker", "pressure", "price",
    "said", "sense", "shots", "tell", "there", "told", "turned", "wanted", "worth",
}  # fmt: skip
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
VAGUE_START = re.compile(r"(What|Those|That|The same)\b")

# Keys of report.json and options of the command line, which users may rely on.
PART_OF_THE_INTERFACE = {"sparsity_asked", "shots"}


class Public(NamedTuple):
    """A public name, where it is defined, and its docstring."""

    name: str
    path: Path
    line: int
    docstring: str | None = None
    is_class: bool = False


def parts(name: str) -> set[str]:
    """The words of a name in snake or camel case, in lower case."""
    return {part.lower() for part in PARTS.findall(name)}


def names_in(path: Path, body: list[ast.stmt], in_class: bool = False) -> Iterator[Public]:
    """Public classes, fields, functions, methods and their parameters."""
    for node in body:
        match node:
            case ast.ClassDef(name=name) if not name.startswith("_"):
                yield Public(name, path, node.lineno, ast.get_docstring(node), is_class=True)
                yield from names_in(path, node.body, in_class=True)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if not name.startswith("_"):
                yield Public(name, path, node.lineno, ast.get_docstring(node))
                parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                yield from (Public(parameter.arg, path, parameter.lineno) for parameter in parameters)
            case ast.AnnAssign(target=ast.Name(id=name)) if in_class and not name.startswith("_"):
                yield Public(name, path, node.lineno)


@cache
def public_names() -> tuple[Public, ...]:
    """All of them, modules first to be named in their files."""
    names: list[Public] = []
    for path in sources(*FOLDERS):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names += [Public(path.stem, path, 1, ast.get_docstring(tree)), *names_in(path, tree.body)]
    return tuple(names)


def places(names: list[Public]) -> list[str]:
    """Where names are defined, without those that are still to be revised."""
    return [f"{label(one.path)}:{one.line} {one.name}" for one in names]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kept_beside", {"kept", "beside"}),
        ("HTMLPage", {"html", "page"}),
        ("_sense2", {"sense"}),
        ("therefore", {"therefore"}),
    ],
)
def test_names_have_parts(name: str, expected: set[str]) -> None:
    assert parts(name) == expected


def test_file_names_occur_once() -> None:
    files = defaultdict(list)
    for path in sources(*FOLDERS):
        files[path.name].append(label(path))
    assert {name: paths for name, paths in files.items() if len(paths) > 1 and name != "__init__.py"} == {}


def test_class_names_occur_once() -> None:
    classes = defaultdict(list)
    for one in public_names():
        if one.is_class:
            classes[one.name].append(label(one.path))
    assert {name: paths for name, paths in classes.items() if len(paths) > 1} == {}


def test_public_names_have_no_private_words() -> None:
    names = [one for one in public_names() if one.name not in PART_OF_THE_INTERFACE]
    assert places([one for one in names if parts(one.name) & PRIVATE_WORDS]) == []


def test_docstrings_start_with_a_noun_or_a_verb() -> None:
    """The first word is that of the thing returned or of the act, not "What" or "Those"."""
    assert places([one for one in public_names() if one.docstring and VAGUE_START.match(one.docstring)]) == []
