"""Refuse a saved program that could run code when it is read: ``torch.export.load`` trusts its file.

Reading a program unpickles objects, evaluates the expressions of symbolic sizes as Python, looks up operators by dotted
names, and compiles a forward from the names in it. All of these are checked before torch reads the file, and so is the
memory that reading takes.
"""

import io
import json
import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pickle import UnpicklingError
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export.pt2_archive import PT2ArchiveReader

from graphprune.errors import LoadError, because
from graphprune.ir import archive_bounds
from graphprune.ir.archive_bounds import parsed
from graphprune.ir.module_names import is_plain_path
from graphprune.ir.size_expressions import is_symbolic

MODEL = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"

_RECORDS = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|data/(weights|constants)/(model_\w+_config\.json|weight_\d+|tensor_\d+)"
    r"|extra/.*|archive_format|archive_version|byteorder|\.data/\w+"
)
#: Operators that a capture may hold, by the module of a dependency that registers them; they only compute.
_OPERATORS_OF_LIBRARIES = {"torch.ops.transformers.grouped_mm_fallback.default": "transformers.integrations.moe"}
_NAMESPACES = ("aten", "prims", "quantized_decomposed", "torchvision")
_FILE_OPERATORS = ("torch.ops.aten.from_file.default", "torch.ops.aten.from_file.out")
_SUBGRAPH_OPERATORS = ("cond", "map_impl", "scan", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled")
_PYTHON_OPERATORS = (
    "getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "and_", "or_", "not_",
    "eq", "ne", "lt", "le", "gt", "ge",
)  # fmt: skip
_SCALAR_FUNCTIONS = re.compile(r"(torch\.(_sym|sym)_\w+|math\.\w+)")

#: Words of a file that become names in compiled code, or are unused; none has quotes or brackets.
_WORD = re.compile(r"[\w.+:/ -]*")
LONGEST = 200  # characters of a message that come from a file
#: Texts that are only data: origins of operators, string literals, and guards, which are never compiled.
_INERT = ("metadata", "as_string", "as_strings", "guards_code")
#: Dotted names of tensors and modules: code has them only as attributes, or in double quotes.
_PATHS = ("parameter_name", "buffer_name", "tensor_constant_name", "fqn")
_SPECIFICATIONS = ("in_spec", "out_spec")


def inspect(reader: PT2ArchiveReader) -> None:
    """Check everything that torch would unpickle, evaluate or compile.

    Raises:
        LoadError: if something is not plain data; the message names the first.
    """
    for record in reader.get_file_names():
        _require(_RECORDS.fullmatch(record), f"the record {record!r}, which is no part of a plain program")
    for config in (WEIGHTS, CONSTANTS):
        payloads = parsed(reader.read_string(config))["config"]
        for name, payload in payloads.items():
            _require(is_plain_path(name), f"a tensor with the name {name!r}")
            _require(not payload["use_pickle"], f"{name} as a pickle")
            _require(_is_tensor(payload["path_name"]), f"{name}, which is no tensor")
        archive_bounds.check_payloads(payloads, partial(_size_of, reader, config.rpartition("/")[0]))
    _inspect_samples(reader.read_bytes(SAMPLES))
    _inspect(parsed(reader.read_string(MODEL)))


def _size_of(reader: PT2ArchiveReader, folder: str, record: str) -> int:
    return int(reader.archive_file.get_record_size(f"{folder}/{record}"))


def _require(plain: object, what: str) -> None:
    if not plain:
        shown = what if len(what) <= LONGEST else f"{what[:LONGEST]}..."
        raise LoadError(
            f"it holds {shown}; reading it may run code, expected plain tensors and operators. If you trust the file, "
            "load it with torch.export.load and pass its .module() to graphprune.trace"
        )


def _is_tensor(path: str) -> bool:
    return re.fullmatch(r"(weight|tensor)_\d+", path) is not None


def _inspect_samples(content: bytes) -> None:
    """Check that restricted unpickling succeeds, because torch falls back to full unpickling where it fails."""
    if not content:
        return
    try:
        _require(archive_bounds.check_pickle(content), "example inputs that are no tensors in plain containers")
        archive_bounds.check_value(torch.load(io.BytesIO(content), weights_only=True))
    except (UnpicklingError, RuntimeError, EOFError) as fault:
        _require(False, f"example inputs that are no tensors{because(fault)}")


def _inspect(tree: Any) -> None:
    for key, value in _leaves(tree):
        if key in _SPECIFICATIONS:
            _inspect_specification(parsed(value))
        elif key in _PATHS:
            _require(is_plain_path(value), f"a tensor or module with the name {value!r}")
        elif key == "expr_str":
            _require(is_symbolic(value), f"the size {value!r}")
        elif key in ("target", "as_operator") and value.startswith(("torch", "math", "_operator", "#")):
            _require(_is_operator(value), f"the operator {value!r}")
        else:
            _require(_WORD.fullmatch(value), f"the name {value!r}")


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Texts in a JSON value that are more than data, with their keys."""
    if isinstance(tree, str):
        yield key, tree
    if isinstance(tree, list):
        for item in tree:
            yield from _leaves(item, key)
    if isinstance(tree, dict):
        for name, item in tree.items():
            yield "", name
            if name not in _INERT:
                yield from _leaves(item, name)


def _inspect_specification(tree: Any) -> None:
    """Check the structure of inputs or outputs: torch imports the names of default factories and enumerations."""
    for text in _texts(tree):
        _require(not re.search(r"default_factory|__enum__", text), f"inputs or outputs with the context {text!r}")
        inner = _decoded(text)
        if inner is not None:
            _inspect_specification(inner)
        else:
            _require(_WORD.fullmatch(text), f"the input or output {text!r}")


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list):
        for item in tree:
            yield from _texts(item)
    elif isinstance(tree, dict):
        yield from tree
        yield from _texts(list(tree.values()))


def _decoded(text: str) -> Any:
    """JSON inside a text, which is the form of contexts; None if it is another text."""
    if not text.startswith(("[", "{", '"')):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_operator(name: str) -> bool:
    if name in _FILE_OPERATORS:
        return False
    parts = name.split(".")
    if parts[0] == "_operator":
        return len(parts) == 2 and parts[1] in _PYTHON_OPERATORS
    if parts[:2] != ["torch", "ops"]:
        return _SCALAR_FUNCTIONS.fullmatch(name) is not None
    if parts[2] == "higher_order":
        return len(parts) == 4 and parts[3] in _SUBGRAPH_OPERATORS
    if name in _OPERATORS_OF_LIBRARIES:
        import_module(_OPERATORS_OF_LIBRARIES[name])  # which registers it
        return isinstance(_overload(parts), OpOverload)
    return len(parts) == 5 and parts[2] in _NAMESPACES and isinstance(_overload(parts), OpOverload)


def _overload(parts: list[str]) -> Any:
    packet = getattr(getattr(torch.ops, parts[2]), parts[3], None)
    return getattr(packet, parts[4], None)
