"""Fields of options classes: their metadata, checks of their values, and functions that take them as flat keywords.

This file imports no torch, so that help texts are shown at once.
"""

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from graphprune.errors import OptionError, choices
from graphprune.support import named_values

P = ParamSpec("P")
R = TypeVar("R")

SEQUENCES = (tuple, list, Sequence)
BY_NAME = 'be {} by name, as in {{"layer3.*": {}}}'
PLAIN = (str, Path, int, float, tuple, list, Mapping)  # types of values that a file can hold
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")  # package.module:name
KINDS = {bool: "be true or false", int: "be a whole number", float: "be a number", str: "be a text"}


@dataclass(frozen=True)
class OptionInfo:
    """Metadata of an option in addition to its name, type and default.

    Args:
        help: The help text of the command line, of Python's help and of the documentation.
        metavar: The name of the value in help texts, such as ``FILE``.
        thing: The kind of a `named` object, for messages.
        least: The smallest number allowed.
        share: Whether the number must lie between 0 and 1.
        choices: The values allowed, where these are few.
        flags: The flags of the command line, where they do not follow from the name.
        python: Whether it can be set from Python only: it has no flag, and cannot be in a file.
        named: Whether it is an object of Python, which the command line and files name by ``package.module:name``.
        suffix: The suffix of files that may stand for a `named` object.
        outcome: Whether the pruned model depends on it; an unfinished run continues only where such options agree.
    """

    help: str
    metavar: str = ""
    thing: str = "a function"
    least: int | None = None
    share: bool = False
    choices: tuple[str, ...] = ()
    flags: str = ""
    python: bool = False
    named: bool = False
    suffix: str = ""
    outcome: bool = True


def about(one: "Field[Any]") -> OptionInfo:
    """Metadata of an option."""
    known = one.metadata["about"]
    assert isinstance(known, OptionInfo)
    return known


def option(default: Any, help: str, **more: Any) -> Any:
    """Field of an options class with a default; for the metadata see `OptionInfo`."""
    return field(default=default, metadata=required(help, **more))


def required(help: str, **more: Any) -> dict[str, OptionInfo]:
    """Metadata of a field without a default, for ``dataclasses.field``; for its values see `OptionInfo`."""
    return {"about": OptionInfo(help, **more)}


_FIELDS: dict[type, Mapping[str, "Field[Any]"]] = {}  # of options classes, which are read for every object
_HINTS: dict[type, Mapping[str, Any]] = {}


class OptionGroup:
    """Base of the options classes: every value is checked when an object is made."""

    def __post_init__(self) -> None:
        for name, one in described(type(self)).items():
            kind = hints(type(self))[name]
            value = _as_numbers(getattr(self, name)) if _takes_numbers(kind) else getattr(self, name)
            if wrong := problem(one, value, kind):
                raise OptionError(f"{name} must {wrong}")
            object.__setattr__(self, name, normal(value))


def hints(options: type) -> Mapping[str, Any]:
    """Types of the fields by name; objects of classes that need torch may be anything."""
    if options not in _HINTS:
        known = get_type_hints(options, localns=dict.fromkeys(("Module", "Optimizer", "Program"), Any))
        _HINTS[options] = {name: known[name] for name in described(options)}
    return _HINTS[options]


def described(options: type) -> Mapping[str, "Field[Any]"]:
    """Fields of an options class by name: its own ones, and those of its bases in their order."""
    if options not in _FIELDS:
        owners = list(owners_of(options))
        _FIELDS[options] = {one.name: one for one in sorted(fields(options), key=lambda one: owners.index(one.name))}
    return _FIELDS[options]


def owners_of(options: type) -> dict[str, type]:
    """Class that introduces each option, not those that restate it; in the order of help texts."""
    owners: dict[str, type] = {}
    for kind in options.__mro__:
        for name in inspect.get_annotations(kind):
            owners.pop(name, None)
            owners[name] = kind
    return owners


def normal(value: Any) -> Any:
    """Normalize a value for storage in options: sequences become tuples, paths become strings."""
    if isinstance(value, Mapping):
        return {name: normal(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return tuple(os.fspath(one) if isinstance(one, Path) else one for one in value)
    return os.fspath(value) if isinstance(value, Path) else value


def _takes_numbers(kind: Any) -> bool:
    """Whether a value of this type may be a number, or hold some."""
    return bool(named_numbers(kind)) or holds_numbers(kind) or bool({int, float} & {*alternatives(kind)})


def _as_numbers(value: Any) -> Any:
    """Value with the numbers of tensors, arrays, ranges and sets as those of Python."""
    if isinstance(value, Mapping):
        return {name: _as_numbers(one) for name, one in value.items()}
    if isinstance(value, range | set | frozenset):
        return tuple(sorted(value, key=lambda one: (type(one).__name__, one)))
    if isinstance(value, list | tuple):
        return tuple(_as_numbers(one) for one in value)
    return _as_numbers(value.tolist()) if hasattr(value, "tolist") else value


def problem(one: "Field[Any]", value: Any, kind: Any, brackets: str = "()") -> str | None:
    """Problem with the value of an option, as in ``be a number, got 'many'``; None if it is valid.

    Args:
        one: The field.
        value: The value to check.
        kind: The type of the field.
        brackets: The brackets of sequences in the source of the value.
    """
    known = about(one)
    if known.named and isinstance(value, str):
        is_file = bool(known.suffix) and value.endswith(known.suffix)
        return (
            None
            if is_file or NAME.fullmatch(value)
            else f"be {known.thing}, or the name package.module:name, got {value!r}"
        )
    if repeats(kind) and isinstance(value, str | Path):
        form = f"{json.dumps(os.fspath(value))}{',' if brackets == '()' else ''}"
        right = f"{one.name}=({form})" if brackets == "()" else f"{one.name}: [{form}]"
        return f"be a sequence: write {right}"
    fits = accepts(kind, value) and _in_range(known, value)
    if fits and (value is None or not known.choices or value in known.choices):
        return None
    return f"{_expected(known, kind)}, got {value!r}"


def _in_range(known: OptionInfo, value: Any) -> bool:
    """Whether numbers have the size that an option requires; a share by name may be 0, which removes nothing."""
    if isinstance(value, Mapping):
        return all(_in_range(known, one) or (known.share and one == 0) for one in value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(_in_range(known, one) for one in value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return True
    return (known.least is None or value >= known.least) and (not known.share or 0 < value < 1)


def repeats(kind: Any) -> bool:
    """Whether a type holds several values."""
    return any(get_origin(one) in SEQUENCES for one in alternatives(kind))


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def accepts(kind: Any, value: Any) -> bool:
    """Whether a value has a type, of those that options have; a whole number is a number, too."""
    if kind is Any:
        return True
    if len(alternatives(kind)) > 1:
        return any(accepts(one, value) for one in alternatives(kind))
    origin = get_origin(kind)
    if origin is Mapping:
        key, item = get_args(kind)
        return isinstance(value, Mapping) and all(accepts(key, k) and accepts(item, v) for k, v in value.items())
    if origin in SEQUENCES:
        item = get_args(kind)[0]
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and (get_origin(item) is tuple or all(accepts(item, one) for one in value))
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _expected(known: OptionInfo, kind: Any) -> str:
    """Requirement on a value, in words."""
    if known.choices:
        return f"be one of {', '.join(known.choices)}"
    if named := named_numbers(kind):
        text = f"lie between 0 and 1 (0.2 is 20 %), or {BY_NAME}" if known.share else BY_NAME
        numbers = "numbers" if known.least is None else f"whole numbers of at least {known.least}"
        return text.format(numbers, "0.3" if named[0] is float else "[0, 7]" if named[1] else "64")
    if known.share:
        return "lie between 0 and 1 (0.2 is 20 %)"
    if known.least is not None and not repeats(kind):
        return "be a positive whole number" if known.least == 1 else f"be a whole number of at least {known.least}"
    if repeats(kind):
        return f"be a sequence{' of numbers' if holds_numbers(kind) else ' of texts' if known.metavar else ''}"
    if holds_paths(kind):
        return "be a path"
    return next((words for one, words in KINDS.items() if one in alternatives(kind)), "be a function")


def holds_paths(kind: Any) -> bool:
    """Whether a value of this type is a path, or several."""
    return any(
        one is Path or (get_origin(one) in SEQUENCES and holds_paths(get_args(one)[0])) for one in alternatives(kind)
    )


def holds_numbers(kind: Any) -> bool:
    """Whether a value of this type is several numbers, some of which may be names instead."""
    items = (get_args(one)[0] for one in alternatives(kind) if get_origin(one) in SEQUENCES)
    return any({int, float} & {*alternatives(item)} for item in items)


def named_numbers(kind: Any) -> tuple[type, bool] | None:
    """Type of the numbers by name that a value of this type is, and whether a name has several; None if it is none."""
    item = next((get_args(one)[1] for one in alternatives(kind) if get_origin(one) is Mapping), None)
    if item is None or get_origin(item) not in SEQUENCES:
        return None if item is None else (item, False)
    return get_args(item)[0], True


def plain(options: OptionGroup, path: Callable[[str], str] = str) -> dict[str, Any]:
    """Options that the outcome depends on, as numbers, strings and lists; `path` converts paths.

    Values that can be set from Python only are omitted.
    """
    table: dict[str, Any] = {}
    for name, kind in hints(type(options)).items():
        one = described(type(options))[name]
        known, value = about(one), getattr(options, name)
        if known.outcome and not needs_python(one, value):
            of = path if value and holds_paths(kind) else lambda one: one
            table[name] = _listed(value, of)
    return table


def _listed(value: Any, of: Callable[[Any], Any]) -> Any:
    """Value with lists in the place of tuples, and `of` every other value in it."""
    if isinstance(value, Mapping):
        return {name: _listed(one, of) for name, one in value.items()}
    return [_listed(one, of) for one in value] if isinstance(value, tuple) else of(value)


def needs_python(one: "Field[Any]", value: Any) -> bool:
    """Whether a value can be set from Python only: neither the command line nor a file can name it."""
    named = str if about(one).named else PLAIN
    return about(one).python or (value is not None and not isinstance(value, named))


def flags(one: "Field[Any]") -> tuple[str, ...]:
    """Flags of an option, such as ``--plan-only/--no-plan-only``; the first is made of its name."""
    name = one.name.replace("_", "-")
    switch = one.type is bool
    return tuple((about(one).flags or (f"--{name}/--no-{name}" if switch else f"--{name}")).split())


def words_of(one: "Field[Any]", value: Any) -> Iterator[str]:
    """Words of an option and its value on the command line."""
    on, _, off = flags(one)[0].partition("/")
    if isinstance(value, bool):
        yield on if value else off
    elif isinstance(value, Mapping):
        yield from (on, named_values.write(value))
    elif holds_numbers(one.type):
        yield from (on, ",".join(map(str, value)))
    else:
        for item in value if isinstance(value, tuple) else (value,):
            yield from (on, str(item))


def takes(options: Callable[P, Any]) -> Callable[[Callable[[Any], R]], Callable[P, R]]:
    """Decorate a function of an options object, so that it takes the fields as flat keywords.

    Type checkers and editors see the fields as parameters, with their types; so do ``inspect.signature`` and ``help``,
    which list the help texts, too.
    """
    assert isinstance(options, type)
    kind: type = options

    def wrap(function: Callable[[Any], R]) -> Callable[P, R]:
        signature = signature_of(kind).replace(return_annotation=inspect.signature(function).return_annotation)

        @wraps(function)
        def flat(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs.keys() - described(kind).keys():
                known = choices(name, described(kind), f"see help(graphprune.{function.__name__})")
                raise TypeError(f"{function.__name__}() has no option {name!r}; {known}")
            bound = signature.bind_partial(*args, **kwargs).arguments
            required = (name for name, one in signature.parameters.items() if one.default is one.empty)
            if missing := [name for name in required if name not in bound]:
                raise TypeError(f"{function.__name__}(): missing a required argument: {missing[0]!r}")
            return function(options(*args, **kwargs))

        flat.__doc__ = _documented(inspect.getdoc(function) or "", kind)
        flat.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
        flat.__annotations__["return"] = signature.return_annotation
        flat.__signature__ = signature  # type: ignore[attr-defined]
        return flat

    return wrap


def signature_of(options: type) -> inspect.Signature:
    """Signature with the fields of an options class as parameters."""
    known = []
    for one in described(options).values():
        kind = inspect.Parameter.KEYWORD_ONLY if one.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = inspect.Parameter.empty if one.default is MISSING else one.default
        known.append(inspect.Parameter(one.name, kind, default=default, annotation=one.type))
    return inspect.Signature(known)


def _documented(text: str, options: type) -> str:
    """Docstring with a section of arguments."""
    rows = [f"    {one.name}: {about(one).help}" for one in described(options).values()]
    start, mark, rest = text.partition("Raises:")
    return "\n".join((start.rstrip(), "", "Args:", *rows, *(("", mark + rest) if mark else ())))
