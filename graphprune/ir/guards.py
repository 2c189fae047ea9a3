"""Guards: conditions on inputs under which a capture holds, because the model decides by them what it runs."""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from graphprune.errors import InputError

LONGEST = 10_000  # characters of a condition
HIGHEST = 8  # exponent in a condition
LARGEST = 1 << 64  # number that a condition raises to a power

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.Not: operator.not_,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {"max": max, "min": min, "abs": abs, "int": int}
_MATH: dict[str, Callable[..., Any]] = {"floor": math.floor, "ceil": math.ceil, "trunc": math.trunc, "sqrt": math.sqrt}
_READS = ("size", "stride", "storage_offset")


class UnknownConditionError(Exception):
    """A condition has parts that are not evaluated."""


@dataclass(frozen=True)
class Guard:
    """Condition under which a capture holds.

    `code` is an expression in which ``args[i].size()[d]`` is a size of the leaf `i` of the inputs; `names` are theirs.
    """

    code: str
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        """The condition with the names of inputs, as in ``x.size(1) <= 16``."""
        return readable(self.code, self.names)

    def holds(self, leaves: Sequence[Any]) -> bool:
        """Whether the condition holds for these leaves of the inputs.

        Raises:
            UnknownConditionError: if it has parts that are not evaluated.
        """
        return bool(_evaluate(_parsed(self.code), leaves))

    def sizes(self, leaves: Sequence[Any]) -> str:
        """Sizes that the condition reads, as in ``x.size(1) = 40``."""
        reads = (node for node in ast.walk(_parsed(self.code)) if isinstance(node, ast.Subscript) and _is_read(node))
        shown = {ast.unparse(node): _evaluate(node, leaves) for node in reads}
        return ", ".join(f"{readable(code, self.names)} = {value}" for code, value in shown.items())


def readable(code: str, names: Sequence[str]) -> str:
    """Expression with the names of inputs in the place of their positions, and without needless parentheses."""
    named = re.sub(r"args\[(\d+)\]", lambda match: names[int(match[1])], ast.unparse(_parsed(code)))
    return re.sub(r"\b(size|stride)\(\)\[(\d+)\]", r"\1(\2)", named)


def fixed_size(size: int | torch.SymInt) -> int | None:
    """Number of a size that cannot change; a symbol may be bound to one."""
    return size if isinstance(size, int) else cast(int | None, size.node.maybe_as_int())


@dataclass(frozen=True)
class ExpectedInput:
    """Input that a capture expects: its name, and the shape of a tensor (None where dynamic) or a constant."""

    name: str
    shape: tuple[int | None, ...] | None
    constant: Any = None
    is_constant: bool = False

    @classmethod
    def of(cls, node: fx.Node, example: Any) -> "ExpectedInput":
        """Expectation of a placeholder; what is neither a tensor nor a dynamic number is a constant."""
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return cls(node.name, tuple(fixed_size(size) for size in value.shape))
        plain = example is None or isinstance(example, bool | int | float | complex | str)
        return cls(node.name, None, example, plain and not isinstance(value, torch.SymInt | torch.SymFloat))

    def problems(self, leaf: Any) -> Iterator[str]:
        """Reasons why a leaf is not accepted."""
        if self.is_constant and not _same(self.constant, leaf):
            yield (
                f"input {self.name} is {_shown(leaf)}, expected {self.constant!r}: whatever is no tensor is a constant "
                "of a capture; trace the module with this value"
            )
        if self.shape is None:
            return
        if not isinstance(leaf, Tensor):
            yield f"input {self.name} is {_shown(leaf)}, expected a tensor"
        elif leaf.dim() != len(self.shape):
            yield f"input {self.name} has {leaf.dim()} dimensions, expected {len(self.shape)}"
        else:
            for dim, (got, size) in enumerate(zip(leaf.shape, self.shape, strict=True)):
                if size is not None and got != size:
                    yield (
                        f"input {self.name} has size {got} in dimension {dim}, expected {size}: this size is fixed in "
                        "the capture; trace the module with another, or with dynamic_shapes"
                    )


class InputCheck(nn.Module):
    """Check of the leaves of inputs, first of all in a module that runs a program."""

    _is_impure = True  # its call has no users, and is retained

    def __init__(self, expected: Sequence[ExpectedInput], guards: Sequence[Guard]) -> None:
        super().__init__()
        self.expected, self.guards = tuple(expected), tuple(guards)

    def forward(self, *leaves: Any) -> None:
        """Check that a capture holds for these inputs.

        Raises:
            InputError: if it does not; it names the input, the dimension, and the sizes that are accepted.
        """
        for problem in problems(self.expected, self.guards, leaves):
            raise InputError(problem)


def problems(expected: Sequence[ExpectedInput], guards: Sequence[Guard], leaves: Sequence[Any]) -> Iterator[str]:
    """Reasons why a capture does not hold for inputs, given by their leaves in the order of the placeholders."""
    if len(expected) != len(leaves):
        yield f"got {len(leaves)} inputs, expected {len(expected)}: {', '.join(each.name for each in expected)}"
        return
    for each, leaf in zip(expected, leaves, strict=True):
        yield from each.problems(leaf)
    for guard in guards:
        if not guard.holds(leaves):
            yield (
                f"the inputs have {guard.sizes(leaves)}, expected {guard.text}: beyond it the model may run other code "
                "than was captured; trace it with inputs of such sizes"
            )


def _shown(leaf: Any) -> str:
    return repr(leaf) if isinstance(leaf, bool | int | float | complex | str) else f"a {type(leaf).__name__}"


def _same(constant: Any, leaf: Any) -> bool:
    if isinstance(leaf, Tensor) or constant is None or leaf is None:
        return constant is leaf
    return bool(constant == leaf) or (constant != constant and leaf != leaf)  # NaN differs from itself


@lru_cache(maxsize=4096)
def _parsed(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise UnknownConditionError(f"{len(text)} characters")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
        raise UnknownConditionError("no expression") from fault


def _is_read(node: ast.Subscript) -> bool:
    return isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute)


def _raised(base: Any, power: int) -> Any:
    """A power, unless powers of powers grow without bounds."""
    if abs(base) > LARGEST:
        raise UnknownConditionError(f"a power of a number beyond {LARGEST}")
    return base**power


def _evaluate(node: ast.expr, leaves: Sequence[Any]) -> Any:  # noqa: C901 - a table of kinds of expressions
    """Value of an expression of arithmetic, comparisons and sizes; nothing else is evaluated."""
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.Name(id="args"):
            return leaves
        case ast.Name(id="inf"):
            return math.inf
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(operand, leaves))
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as power)) if 0 <= power <= HIGHEST:
            return _raised(_evaluate(left, leaves), power)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, leaves), _evaluate(right, leaves))
        case ast.BoolOp(op=op, values=values):
            combine = all if isinstance(op, ast.And) else any
            return combine(_evaluate(value, leaves) for value in values)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
            values = [_evaluate(value, leaves) for value in (left, *others)]
            return all(_OPERATORS[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
        case ast.Subscript(value=value, slice=ast.Constant(value=int() as index)):
            return _evaluate(value, leaves)[index]
        case ast.Call(func=ast.Attribute(value=ast.Subscript() as value, attr=attr), args=[]) if attr in _READS:
            return getattr(_evaluate(value, leaves), attr)()
        case ast.Call(func=ast.Attribute(value=ast.Name(id="math"), attr=attr), args=args) if attr in _MATH:
            return _MATH[attr](*(_evaluate(argument, leaves) for argument in args))
        case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(argument, leaves) for argument in args))
    raise UnknownConditionError(ast.unparse(node))
