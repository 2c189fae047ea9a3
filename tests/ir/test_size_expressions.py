"""Texts of symbolic sizes: arithmetic passes, code and numbers without end do not."""

import pytest

from graphprune.ir.size_expressions import is_symbolic

PLAIN = (
    "Symbol('s31', positive=True, integer=True)",
    "Add(Mul(Integer(4), Symbol('s0')), Integer(-1))",
    "FloorDiv(Add(Symbol('s0'), Integer(1)), Integer(2))",
    "Pow(Symbol('s0'), Rational(1, 2))",
    "Float('0.5', precision=53)",
    "Eq(Mod(s0, 8), 0)",
    "2**62",
)
CODE = ("__import__('os').abort()", "(lambda: 3)()", "Symbol('s0').__class__", "Symbol('a.b(c)')", "f(x)", "[1]", "1 +")
ENDLESS = (
    "Pow(9, Pow(9, 9))",
    "9**9**9",
    "Pow(9, 99999999)",
    "Pow(s0, s1)",
    "Pow(" * 20 + "s0" + ", 9)" * 20,
    "LShift(1, 99999999999)",
    "1 << 99999999999",
    "RoundDecimal(7, -1000000000)",
    "1e999999999",
    "0e999999999",
    "Float('1e999999999', precision=53)",
    "Float('0.5', precision=1000000000)",
    "Float(0.5, 1000000000)",
    "9" * 4000,
    "~" * 200 + "1",
    "+".join(["s0"] * 4000),
)


@pytest.mark.parametrize("text", PLAIN)
def test_arithmetic(text: str) -> None:
    assert is_symbolic(text)


@pytest.mark.parametrize("text", CODE + ENDLESS, ids=lambda text: text[:20])
def test_code_and_numbers_without_end(text: str) -> None:
    assert not is_symbolic(text)
