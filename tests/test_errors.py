"""Messages: our own sentence first, the cause as a short aside, and never the raw text of a library's error."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphprune import errors
from graphprune.errors import LONGEST, LoadError, because, misread

ROOT = Path(__file__).parents[1]
OURS = {name for name in vars(errors) if name[0].isupper()} | {"Misaligned", "KeyboardInterrupt", "NotByName"}


def caught(text: str) -> BaseException:
    with pytest.raises(ValueError) as found:
        json.loads(text)
    return found.value


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(28, "No space left on device", "x"), "no space left on device"),
        (KeyError("seconds"), "there is no entry 'seconds'"),
        (KeyError(3), "3"),
        (caught("{\n  no"), "not JSON from line 2, column 3 on"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "byte 0 is not UTF-8"),
        (RuntimeError("\n\x1b[31mbad <object Odd at 0x7f12ab>\x1b[0m.\nmore"), "bad <object Odd>"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("x" * 1000), "x" * LONGEST + "..."),
        (LoadError("x" * 1000), "x" * 1000),
    ],
)
def test_a_cause_is_one_short_line(fault: BaseException, words: str) -> None:
    assert because(fault) == f" (reason: {words})"


def test_a_file_of_ours_that_has_another_structure() -> None:
    for fault in (TypeError("Report.__init__() missing 8 required positional arguments: 'model'"), ValueError("x")):
        assert misread(fault) == " (reason: its content has another structure)"
    assert misread(KeyError("keep")) == because(KeyError("keep"))


def handlers() -> Iterator[tuple[Path, ast.ExceptHandler]]:
    for folder in ("graphprune", "passes", "exporters", "frontends"):
        for path in (ROOT / folder).rglob("*.py"):
            if not any(parent.is_symlink() for parent in path.parents):
                found = ast.walk(ast.parse(path.read_text()))
                yield from ((path, node) for node in found if isinstance(node, ast.ExceptHandler) and node.name)


def is_ours(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return all(ast.unparse(kind).rpartition(".")[2] in OURS for kind in kinds if kind)


def raw(handler: ast.ExceptHandler) -> Iterator[ast.AST]:
    """Where the text of the error that a handler catches is used as it is."""
    for node in ast.walk(handler):
        value = node.value if isinstance(node, ast.FormattedValue) else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("str", "repr"):
            value = node.args[0] if node.args else None
        if isinstance(value, ast.Name) and value.id == handler.name:
            yield node


def test_no_message_holds_the_raw_text_of_a_foreign_error() -> None:
    handled = list(handlers())
    assert len(handled) > 60
    found = [f"{path}:{node.lineno}" for path, h in handled if not is_ours(h) for node in raw(h)]  # type: ignore[attr-defined]
    assert not found


def test_the_search_for_raw_text_finds_it() -> None:
    source = "try:\n  pass\nexcept (OSError, LoadError) as e:\n  print(f'{e!r}', str(e))"
    tree = ast.parse(source)
    handler = next(node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    assert not is_ours(handler) and len(list(raw(handler))) == 2
