"""Refuse texts of symbolic sizes that are more than arithmetic, or whose evaluation would not end.

torch evaluates such texts as Python, and sympy computes numbers of any length: a tower of three powers never ends.
"""

import ast
import math
import re
from collections.abc import Iterator

MAX_LENGTH = 10_000  # characters
MAX_PARTS = 1_000
MAX_DEPTH = 64
MAX_BITS = 1_024  # of the largest number that can appear during the evaluation
MAX_EXPONENT = 64  # also of shifts and decimals
SYMBOL_BITS = 32
TEXT_BITS = 96
MAX_PRECISION = 256

_SYMBOLIC = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|Abs|floor|ceiling|And|Or|Not|Equality|Unequality"
    r"|(Strict)?(Less|Greater)Than|Eq|Ne|Lt|Le|Gt|Ge|oo|zoo|int_oo|[A-Za-z]*(Div|Mod|Indexing)|PowByNatural|FloatPow"
    r"|ToFloat|(Trunc|Ceil|Floor|Round)ToInt|TruncToFloat|RoundDecimal|Identity|Where|[LR]Shift|BitwiseFn_\w+"
    r"|OpaqueUnaryFn_\w+|IsNonOverlappingAndDenseIndicator|[suz]\w*\d+"
)
_EXPRESSION = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Compare, ast.cmpop, ast.BinOp,
    ast.operator, ast.UnaryOp, ast.unaryop,
)  # fmt: skip
_POWERS = ("Pow", "PowByNatural", "FloatPow", "LShift", "RShift", "RoundDecimal")
_LONG_NUMBER = re.compile(r"\d{40}|\d\.?[eE][+-]?\d{4}")
_NAME_OR_NUMBER = re.compile(r"[A-Za-z_]\w{0,99}|[+-]?\d{1,24}(\.\d{1,24})?([eE][+-]?\d{1,3})?|")


def is_symbolic(text: str) -> bool:
    """Whether a text is only arithmetic over symbols and numbers, and short and tame enough to be evaluated."""
    if len(text) > MAX_LENGTH or _LONG_NUMBER.search(text):
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    parts = list(ast.walk(tree))
    if len(parts) > 4 * MAX_PARTS or _depth(tree) > MAX_DEPTH:  # every call has a name and a context, too
        return False
    return all(map(_is_symbolic_part, parts)) and _bits(tree.body) <= MAX_BITS


def _depth(tree: ast.AST) -> int:
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [part for node in level for part in ast.iter_child_nodes(node)]
    return depth


def _is_symbolic_part(part: ast.AST) -> bool:
    if isinstance(part, ast.Call):  # a second argument of Float is its number of digits
        return bool(_called(part)) and (_called(part) != "Float" or len(part.args) == 1)
    if isinstance(part, ast.Name):
        return _SYMBOLIC.fullmatch(part.id) is not None
    if isinstance(part, ast.keyword):
        return isinstance(part.value, ast.Constant) and _is_option(part.value.value)
    if isinstance(part, ast.Constant):
        return _is_plain(part.value)
    return isinstance(part, _EXPRESSION)


def _is_option(value: object) -> bool:
    """Whether a keyword has a value such as ``positive=True`` or ``precision=53``."""
    return isinstance(value, bool | None) or (isinstance(value, int) and 0 <= value <= MAX_PRECISION)


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return _NAME_OR_NUMBER.fullmatch(value) is not None
    return isinstance(value, bool | int | None) or (isinstance(value, float) and math.isfinite(value))


def _bits(part: ast.expr) -> float:
    """An upper bound for the bits of the value of an expression."""
    if isinstance(part, ast.Constant):
        return _bits_of_constant(part.value)
    if isinstance(part, ast.BinOp | ast.Call) and (operation := _power(part)):
        base, exponent = operation
        return (_bits(base) + 1) * max(1.0, abs(_number(exponent)))
    bits = [_bits(inner) for inner in _operands(part)]
    if (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mult)) or _called(part) == "Mul":
        return sum(bits)
    return max(bits, default=SYMBOL_BITS) + len(bits).bit_length()


def _bits_of_constant(value: object) -> float:
    if isinstance(value, int):
        return value.bit_length()
    return TEXT_BITS if isinstance(value, str) else math.log2(abs(value) + 1) if isinstance(value, float) else 0


def _power(part: ast.BinOp | ast.Call) -> tuple[ast.expr, ast.expr] | None:
    """Base and exponent of a power, a shift or a rounding to decimals."""
    if isinstance(part, ast.BinOp):
        return (part.left, part.right) if isinstance(part.op, ast.Pow | ast.LShift | ast.RShift) else None
    return (part.args[0], part.args[1]) if _called(part) in _POWERS and len(part.args) == 2 else None


def _number(part: ast.expr) -> float:
    """The number that an exponent is; infinity if it is another expression, or too large."""
    if isinstance(part, ast.UnaryOp):
        return _number(part.operand)
    if _called(part) in ("Integer", "Rational", "Float") and isinstance(part, ast.Call) and part.args:
        return max(map(_number, part.args))
    value = part.value if isinstance(part, ast.Constant) else None
    return value if isinstance(value, int | float) and abs(value) <= MAX_EXPONENT else math.inf


def _called(part: ast.expr) -> str:
    return part.func.id if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) else ""


def _operands(part: ast.expr) -> Iterator[ast.expr]:
    """The expressions of which a value is computed, without names of functions."""
    inner = part.args if isinstance(part, ast.Call) else ast.iter_child_nodes(part)
    yield from (item for item in inner if isinstance(item, ast.expr))
