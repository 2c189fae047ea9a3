"""Specialized classes: a layer's own class, whose methods pass some numbers from attributes instead of computing them.

Where a forward computes the size of a narrow tensor from that of a wide one, as ``q.view(b, t, self.heads, c //
self.heads)`` does, no attribute can be set to follow a cut. The layer then gets a subclass of its class in which this
one argument reads a new attribute; everything else in its code is unchanged. Instances can be copied and pickled.
"""

import __future__

import ast
import copy
import inspect
import linecache
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import nn

from graphprune.errors import WriteBackError, because
from graphprune.writeback.call_sites import ArgumentPath, Span, first_parameter

_FUTURES = [getattr(__future__, name).compiler_flag for name in __future__.all_feature_names]


@dataclass(frozen=True)
class ArgumentEdit:
    """Replacement of a number among the arguments of a torch function by an attribute of the layer.

    The other fields are those of `CallSite`, and the path of the number among the arguments.
    """

    method: str
    span: Span
    function: str
    bound: bool
    positional: int
    path: ArgumentPath
    attribute: str


def specialized(base: type[nn.Module], edits: frozenset[ArgumentEdit]) -> type[nn.Module]:
    """The subclass of `base` with these replacements.

    Raises:
        WriteBackError: if the source of a method is not available, or an argument cannot be replaced.
    """
    methods = {edit.method for edit in edits}
    try:
        sources = {name: _edited(base, name, [e for e in edits if e.method == name]) for name in sorted(methods)}
        origin: Any = vars(base).get("specialized_from", (base, ()))
        root, former = origin
        make: Any = _subclass  # mypy takes no class of modules for hashable
        kind: type[nn.Module] = make(root, tuple({**dict(former), **sources}.items()))
        return kind
    except WriteBackError:
        raise
    except Exception as fault:  # any source: what is not understood is not edited
        raise WriteBackError(f"the code of {base.__name__} cannot be adapted{because(fault)}") from fault


@lru_cache
def _subclass(base: Any, sources: tuple[tuple[str, str], ...]) -> type[nn.Module]:
    """The subclass of `base` with methods of these sources; it has the names of `base`."""

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _empty, (base, sources), getattr(self, "__getstate__")()  # noqa: B009 - untyped

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    methods = {name: _compiled(base, name, source) for name, source in sources}
    members: dict[str, Any] = {**names, **methods, "__reduce_ex__": reduce, "specialized_from": (base, sources)}
    return type(base.__name__, (base,), members)


def _empty(base: type[nn.Module], sources: tuple[tuple[str, str], ...]) -> nn.Module:
    """A new instance of the subclass, which pickle fills with its state."""
    make: Any = _subclass
    kind = make(base, sources)
    instance: nn.Module = kind.__new__(kind)
    return instance


def _function(base: type, name: str) -> tuple[Any, FunctionType]:
    """The attribute of a class that is a method, and the function inside its decorators."""
    held = getattr(base, name)
    inner: Any = inspect.unwrap(held)
    if not isinstance(inner, FunctionType):
        raise WriteBackError(f"{base.__name__}.{name} is no function of Python")
    return held, inner


def _edited(base: type, name: str, edits: Sequence[ArgumentEdit]) -> str:
    """Source of a method with replacements."""
    _, function = _function(base, name)
    lines, _ = inspect.findsource(function.__code__)
    node = copy.deepcopy(_definition(_parsed("".join(lines)), function))
    parameter, index = first_parameter(function.__code__)
    receiver: ast.expr = ast.Name(parameter, ast.Load())
    if index is not None:
        receiver = ast.Subscript(receiver, ast.Constant(index), ast.Load())
    for span in {edit.span for edit in edits}:
        expressions = _spanning(node, span)
        if len(expressions) != 1:
            raise WriteBackError(f"the source of {base.__name__}.{name} has no call that ends at line {span[1]}")
        for edit in sorted((edit for edit in edits if edit.span == span), key=lambda edit: str(edit.path)):
            value = ast.Attribute(receiver, edit.attribute, ast.Load())
            _replace_argument(expressions[0], edit, value)
    return ast.unparse(ast.fix_missing_locations(node))


def _spanning(node: ast.AST, span: Span) -> list[ast.AST]:
    """Expressions of a span; a call of a method may start at any of its dots, also where an operator ends with it."""
    line, last, column, end = span
    kinds = ast.Call | ast.BinOp | ast.AugAssign | ast.Subscript
    ending = [x for x in ast.walk(node) if isinstance(x, kinds) and (x.end_lineno, x.end_col_offset) == (last, end)]
    exact: list[ast.AST] = [x for x in ending if (x.lineno, x.col_offset) == (line, column)]
    return exact or [x for x in ending if isinstance(x, ast.Call)]


@lru_cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _definition(tree: ast.Module, function: FunctionType) -> ast.FunctionDef:
    """Definition of a function, whose first line is that of its first decorator."""
    first = function.__code__.co_firstlineno
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and first == min([node.lineno, *(n.lineno for n in node.decorator_list)]):
            return node
    raise WriteBackError(f"the source of {function.__qualname__} has changed since it was imported")


def _replace_argument(node: ast.AST, edit: ArgumentEdit, value: ast.expr) -> None:
    """Replace a number among the arguments of a call, an operator or a subscript."""
    kind, where, *inside = edit.path
    if isinstance(node, ast.Subscript):
        _replace_bound(node, inside, value)
    elif isinstance(node, ast.AugAssign):
        node.value = value
    elif isinstance(node, ast.BinOp):
        side = "left" if edit.function.startswith("__r") else "right"
        setattr(node, side, value)
    elif isinstance(node, ast.Call) and kind:
        keyword = next(keyword for keyword in node.keywords if keyword.arg == where)
        keyword.value = _replaced(keyword.value, inside, value)
    elif isinstance(node, ast.Call):
        offset = int(edit.bound)
        node.args = _replaced_items(node.args, edit.positional - offset, int(where) - offset, inside, value)


def _replace_bound(node: ast.Subscript, inside: Sequence[Any], value: ast.expr) -> None:
    """Replace the start, end or step of a slice."""
    item: ast.expr = node.slice
    if isinstance(item, ast.Tuple) and len(inside) == 2:
        item = item.elts[inside[0]]
    if not isinstance(item, ast.Slice):
        raise WriteBackError("an index is computed")
    setattr(item, ("lower", "upper", "step")[inside[-1]], value)


def _replaced(expression: ast.expr, path: Sequence[Any], value: ast.expr) -> ast.expr:
    """An expression with another number at a path inside its value."""
    if not path:
        return value
    index, *inside = path
    if inside or not isinstance(index, int):
        raise WriteBackError("the sizes lie too deep in the arguments")
    if isinstance(expression, ast.Tuple | ast.List) and not any(isinstance(e, ast.Starred) for e in expression.elts):
        expression.elts = _replaced_items(expression.elts, len(expression.elts), index, inside, value)
        return expression
    return _tuple_with(expression, index, value)


def _replaced_items(
    items: list[ast.expr], count: int, index: int, inside: Sequence[Any], value: ast.expr
) -> list[ast.expr]:
    """Elements with another number in that of `index`; `count` is their number with starred ones unpacked."""
    starred = [i for i, item in enumerate(items) if isinstance(item, ast.Starred)]
    at = index if not starred or index < starred[0] else index - count + len(items)
    if not starred or index < starred[0] or at > starred[-1]:
        return [*items[:at], _replaced(items[at], inside, value), *items[at + 1 :]]
    if inside:
        raise WriteBackError("the sizes lie too deep in the arguments")
    return [ast.Starred(_tuple_with(ast.Tuple(items, ast.Load()), index, value), ast.Load())]


def _tuple_with(expression: ast.expr, index: int, value: ast.expr) -> ast.expr:
    """Tuple of the values of an expression, with another number at an index."""
    stored = ast.NamedExpr(ast.Name("_sizes", ast.Store()), expression)
    before = ast.Subscript(stored, ast.Slice(None, ast.Constant(index)), ast.Load())
    after = ast.Subscript(ast.Name("_sizes", ast.Load()), ast.Slice(ast.Constant(index + 1), None), ast.Load())
    items: list[ast.expr] = [ast.Starred(before, ast.Load()), value, ast.Starred(after, ast.Load())]
    return ast.Tuple(items, ast.Load())


def _compiled(base: type, name: str, source: str) -> Any:
    """A method from its source, with the globals, closure, defaults and decorators of the method of `base`."""
    held, function = _function(base, name)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    free = {key: cell.cell_contents for key, cell in cells.items()}
    flags = sum(flag for flag in _FUTURES if function.__code__.co_flags & flag)
    flags |= __future__.annotations.compiler_flag  # names of types alone may not exist at run time
    namespace: dict[str, Any] = {}
    file = f"<{function.__qualname__}, adapted to a cut, {zlib.crc32(source.encode()):x}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # for tracebacks, and inspect
    code = compile(_factory(source, tuple(free), _owner_of(function)), file, "exec", flags, True)
    exec(code, function.__globals__, namespace)
    new = namespace["make"](**free)
    inner: Any = inspect.unwrap(new)
    inner.__defaults__, inner.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    inner.__qualname__, inner.__module__ = function.__qualname__, function.__module__
    if held is function and new is not inner:
        raise WriteBackError(f"the decorators of {base.__name__}.{name} cannot be applied again")
    return new


def _factory(source: str, free: Iterable[str], owner: str) -> ast.Module:
    """Definition of a function that takes the free variables of a method and returns the method."""
    tree = ast.parse(source)
    method = tree.body[0]
    assert isinstance(method, ast.FunctionDef)
    arguments = method.args
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [None if default is None else ast.Constant(None) for default in arguments.kw_defaults]
    _Mangled(owner).visit(method)
    parameters = ast.arguments([], [ast.arg(name) for name in free], None, [], [], None, [])
    body: list[ast.stmt] = [method, ast.Return(ast.Name(method.name, ast.Load()))]
    tree.body = [ast.FunctionDef("make", parameters, body, [])]
    return ast.fix_missing_locations(tree)


class _Mangled(ast.NodeTransformer):
    """Private names as they are inside the class statement."""

    def __init__(self, owner: str) -> None:
        self.owner = owner.lstrip("_")

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr.startswith("__") and not node.attr.endswith("__"):
            node.attr = f"_{self.owner}{node.attr}"
        return node


def _owner_of(function: FunctionType) -> str:
    """Name of the class that defines a method."""
    return function.__qualname__.split(".")[-2] if "." in function.__qualname__ else ""
