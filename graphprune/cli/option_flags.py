"""Flags from the fields of options classes, and their values from the command line and a file."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field
from functools import wraps
from typing import Annotated, Any, Literal, get_args

import typer

from graphprune.cli.arguments import Json
from graphprune.errors import OptionError
from graphprune.support import named_values
from graphprune.workflows.option_fields import (
    OptionInfo,
    about,
    alternatives,
    described,
    flags,
    hints,
    holds_numbers,
    named_numbers,
    owners_of,
    repeats,
)

Show = Callable[[], None]
Values = dict[str, Any]
Command = Callable[[Values, bool], Show]

CONFIG = typer.Option(
    "--config",
    metavar="FILE",
    help="Read options by name from this YAML file, such as the run.yaml in the output of a run; the command line "
    "takes precedence. Relative paths start at the current folder.",
    show_default=False,
)


def options_of(options: type, *, require: Sequence[str]) -> Callable[[Command], Callable[..., Show]]:
    """Decorate a command with the flags of an options class.

    The command receives the explicit values by name, and whether to print JSON.

    Args:
        options: The class.
        require: Options that must be set, on the command line or in a file; with ``|``, one of several.
    """
    known = {name: one for name, one in described(options).items() if not about(one).python}
    types, owners = hints(options), owners_of(options)

    def wrap(run: Command) -> Callable[..., Show]:
        @wraps(run)
        def flat(context: typer.Context, config: str | None, json: bool, **values: Any) -> Show:
            flagged = {name: value for name, value in values.items() if _is_given(context, name)}
            explicit = {
                **_from_file(config, options),
                **{name: _parsed(known[name], types[name], flagged[name]) for name in flagged},
            }
            for names in (words.split("|") for words in require):
                if explicit.keys().isdisjoint(names):
                    *others, last = (_shown(known[name]) for name in names)
                    missing = f"{', '.join(others)} or {last}" if others else last
                    raise OptionError(f"{missing} is missing; set it on the command line, or in a file (--config FILE)")
            return run(explicit, json)

        parameters = [
            _parameter("context", typer.Context),
            *(_flag(one, types[name], owners[name], name in require) for name, one in known.items()),
            _parameter("config", Annotated[str | None, CONFIG], None),
            _parameter("json", Json, False),
        ]
        flat.__annotations__ = {one.name: one.annotation for one in parameters}
        flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return flat

    return wrap


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(one: "Field[Any]", kind: Any, owner: type, is_required: bool) -> inspect.Parameter:
    """Parameter of a command for one option; `owner` is the class that introduces it."""
    known = about(one)
    value: Any = one.default
    default = None if is_required or repeats(kind) or named_numbers(kind) else value
    shared: Values = {"help": _help(known, kind, is_required), "metavar": known.metavar or None}
    if not one.kw_only:
        return _parameter(one.name, Annotated[str | None, typer.Argument(**shared, show_default=False)], default)
    if holds_numbers(kind):
        default = ",".join(map(str, value)) or None
    panel = owner.__dict__.get("title")
    shown = not isinstance(default, bool) and default not in (None, "")
    made = typer.Option(*flags(one), **shared, min=known.least, rich_help_panel=panel, show_default=shown)
    return _parameter(one.name, Annotated[_type(known, kind), made], default)


def _help(known: OptionInfo, kind: Any, is_required: bool) -> str:
    repeated = repeats(kind) and not holds_numbers(kind)
    return f"{known.help[:-1]}{'; repeatable' if repeated else ''}{' (required)' if is_required else ''}."


def _type(known: OptionInfo, kind: Any) -> Any:
    """Type that the command line parses: paths are strings, several numbers are one word, with names or without."""
    if known.choices:
        return Literal[known.choices] | None
    if named_numbers(kind):
        return str | None
    if repeats(kind):
        return str | None if holds_numbers(kind) else list[str] | None
    plain = next(
        (one for one in alternatives(kind) if one in (bool, int, float) and str not in alternatives(kind)), str
    )
    return plain if plain is bool else plain | None


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option is set on the command line, and not by its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _from_file(config: str | None, options: type) -> Values:
    if config is None:
        return {}
    from graphprune.workflows.runs import run_file  # imports YAML only where it is needed

    return run_file.read(config, options)


def _parsed(one: "Field[Any]", kind: Any, value: Any) -> Any:
    """Convert a value of the command line to that of the option.

    Raises:
        OptionError: if numbers do not have the form ``0.1,0.5``, or those by name not the form ``NAME=0.5``.
    """
    if isinstance(value, list):
        return tuple(value)
    if holds_numbers(kind):
        return _numbers(one, kind, value)
    if float in alternatives(kind) and isinstance(value, str) and _is_number(value):
        return float(value)
    if named := named_numbers(kind):
        try:
            return named_values.numbers(value, *named)
        except OptionError as fault:
            raise OptionError(f"{_shown(one)} {fault}") from fault
    return value


def _numbers(one: "Field[Any]", kind: Any, text: str) -> tuple[Any, ...]:
    """Numbers of a text such as ``0.1,0.5``; words that are no numbers are names, where these may be in their place."""
    items = alternatives(get_args(kind)[0])
    names, whole = str in items, int in items
    number = int if whole else float
    try:
        return tuple(word if names and not word.isdigit() else number(word) for word in text.split(","))
    except ValueError as fault:
        raise OptionError(
            f"{_shown(one)} {text!r} is not of the form {'1,3,5' if whole else '0.1,0.25,0.5'}"
        ) from fault


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(one: "Field[Any]") -> str:
    """Name of an option on the command line."""
    return flags(one)[0].partition("/")[0] if one.kw_only else one.name.upper()
