"""Read JSON that graphprune wrote: every value is checked against its type, and an error names the field."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from graphprune.errors import LoadError, misread

T = TypeVar("T")
_KINDS: Mapping[type, str] = {
    dict: "an object", list: "a list", str: "a text", bool: "a truth value", int: "a whole number", float: "a number",
    NoneType: "null",
}  # fmt: skip


class FieldError(ValueError):
    """A field of a file is missing, unknown or of another type; `str` names it."""


def read(path: Path) -> "Field":
    """The value of a JSON file.

    Raises:
        FieldError: if it is no JSON: also with a repeated key, NaN or infinity, or nested too deeply.
        OSError: if the file cannot be read.
        UnicodeDecodeError: if it is not UTF-8.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number, object_pairs_hook=_unique)
    except RecursionError:
        raise FieldError("it is nested too deeply") from None
    return Field(value)


def _no_number(text: str) -> object:
    raise FieldError(f"{text} is not a number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise FieldError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return table


@dataclass(frozen=True)
class Field:
    """A value of a JSON file, and its path in the file."""

    value: Any
    path: str = ""

    def error(self, expected: str) -> FieldError:
        """The error that another value was expected."""
        got = _KINDS.get(type(self.value), "another value")
        shown = f" {self.value!r}"[:40] if isinstance(self.value, str | int | float) else ""
        return FieldError(f"{self.path or 'the file'} is {got}{shown}, expected {expected}")

    def text(self) -> str:
        """The value, which is a text."""
        text: str = self._of(str)
        return text

    def whole(self, least: int | None = None) -> int:
        """The value, which is a whole number and at least `least`; a truth value is none."""
        if type(self.value) is not int or (least is not None and self.value < least):
            raise self.error("a whole number" if least is None else f"a whole number of at least {least}")
        return self.value

    def number(self) -> float:
        """The value, which is a finite number."""
        if type(self.value) not in (int, float):
            raise self.error("a number")
        try:
            number = float(self.value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error("a finite number")
        return number

    def items(self) -> list["Field"]:
        """The items of the value, which is a list."""
        return [Field(item, f"{self.path}[{i}]") for i, item in enumerate(self._of(list))]

    def entries(self) -> dict[str, "Field"]:
        """The entries of the value, which is an object."""
        return {key: Field(item, f"{self.path}[{key!r}]" if self.path else key) for key, item in self._of(dict).items()}

    def members(self, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, "Field"]:
        """The entries of an object that has the required members, perhaps the optional ones, and no others."""
        entries = self.entries()
        for name in required:
            if name not in entries:
                raise FieldError(f"{self.path or 'the file'} lacks {name}")
        for name in entries:
            if name not in (*required, *optional):
                raise FieldError(f"{entries[name].path} is unknown")
        return entries

    def whole_numbers(self) -> list[int]:
        """The items of a list of whole numbers."""
        numbers: list[int] = self._of(list)
        if any(type(number) is not int for number in numbers):
            for item in self.items():
                item.whole()
        return numbers

    def as_type(self, kind: Any) -> Any:
        """The value as a type: a dataclass, a tuple, a mapping by text, a union, or a simple type."""
        origin, inside = get_origin(kind), get_args(kind)
        if kind is Any:
            return self.value
        if origin in (Union, UnionType):
            return self._as_one_of(inside)
        if origin is tuple:
            return self._as_tuple(inside)
        if origin is not None and issubclass(origin, Mapping):
            return {key: item.as_type(inside[1]) for key, item in self.entries().items()}
        if is_dataclass(kind):
            return self.as_dataclass(kind)  # type: ignore[arg-type]
        if kind is float:
            return math.nan if self.value is None else self.number()  # JSON has no numbers that are not finite
        return self.whole() if kind is int else self._of(kind)

    def as_dataclass(self, kind: type[T], others: bool = False) -> T:
        """The value as a dataclass; with `others`, entries that are no fields of it are skipped."""
        own = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}  # type: ignore[arg-type]
        required = tuple(name for name, needed in own.items() if needed)
        entries = self.members(required, tuple(self.entries()) if others else tuple(own))
        hints = get_type_hints(kind)
        return kind(**{name: item.as_type(hints[name]) for name, item in entries.items() if name in own})

    def _as_one_of(self, kinds: tuple[Any, ...]) -> Any:
        if self.value is None and NoneType in kinds:
            return None
        *others, last = [kind for kind in kinds if kind is not NoneType]
        for kind in others:
            with suppress(FieldError):
                return self.as_type(kind)
        return self.as_type(last)

    def _as_tuple(self, inside: tuple[Any, ...]) -> tuple[Any, ...]:
        items = self.items()
        kinds = inside[:1] * len(items) if inside[1:] == (...,) else inside
        if len(kinds) != len(items):
            raise FieldError(f"{self.path or 'the file'} has {len(items)} items, expected {len(kinds)}")
        return tuple(item.as_type(kind) for item, kind in zip(items, kinds, strict=True))

    def _of(self, kind: type[Any]) -> Any:
        if type(self.value) is not kind:
            raise self.error(_KINDS.get(kind, kind.__name__))
        return self.value


def refused(path: Path | str, what: str, fault: Exception, advice: str) -> LoadError:
    """The error of a file that is not `what`, such as "is no plan that graphprune saved"."""
    reason = f" (reason: {fault})" if isinstance(fault, FieldError) else misread(fault)
    return LoadError(f"{path} {what}{reason}; {advice}")
