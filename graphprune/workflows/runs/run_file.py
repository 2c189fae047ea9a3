"""Read and write ``run.yaml``: the options of a run in a file, which repeats it from any folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from graphprune.errors import LoadError, OptionError, because, choices
from graphprune.statistics.data_files import AND, PYDOC, text_names
from graphprune.workflows.option_fields import OptionGroup, about, described, hints, needs_python, plain, problem

FILE = "run.yaml"
HEAD = """\
# The options of a run, which `graphprune {command} --config {file} --output DIR` repeats from any folder.
"""


def read(path: str | Path, options: type) -> dict[str, Any]:
    """Read the options in a file, by name.

    Raises:
        LoadError: if the file cannot be read.
        OptionError: if a key is no option, or its value is not valid.
    """
    known, types = described(options), hints(options)
    values: dict[str, Any] = {}
    for key, value in _table(Path(path)).items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise OptionError(f"{path}: no option {key!r}; {choices(name, known, 'see --help of the command')}")
        if about(known[name]).python:
            raise OptionError(f"{path}: {name} cannot be in a file; set it from Python")
        if wrong := problem(known[name], value, types[name], "[]"):
            raise OptionError(f"{path}: {name} must {wrong}")
        values[name] = value
    return values


def _table(path: Path) -> Mapping[Any, Any]:
    """Read the table in a YAML file."""
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise LoadError(f"cannot read the options in {path}{because(fault)}") from fault
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark else "this"
        raise LoadError(f"{path}: {line} is not YAML; write one option a line, as in sparsity: 0.2") from fault
    if not isinstance(table, Mapping | None):
        raise LoadError(f"{path} holds no options by name; write one a line, as in sparsity: 0.2")
    return table or {}


def text(options: OptionGroup, command: str = "prune", file: str = FILE) -> str:
    """Text of the file that repeats a run: every option that its outcome depends on, except the output."""
    table = {name: value for name, value in plain(options, anywhere).items() if name != "output"}
    given = ((name, one) for name, one in described(type(options)).items() if getattr(options, name) != one.default)
    missing = [name for name, one in given if name != "model" and needs_python(one, getattr(options, name))]
    notes = [f"# It also had {name} from Python, which cannot be in a file.\n" for name in missing]
    head = HEAD.format(command=command, file=file)
    return "".join((head, *notes, yaml.safe_dump(table, sort_keys=False, allow_unicode=True, width=1000)))


def anywhere(path: str) -> str:
    """Absolute paths of files and folders; other names of models and texts are returned unchanged."""
    if len(names := text_names(path)) > 1:
        return AND.join(map(anywhere, names))
    file = path if Path(path).exists() else path.partition("[")[0]  # documents of a text are FILE[0:1500]
    return os.path.abspath(path) if file and path not in PYDOC and Path(file).exists() else path
