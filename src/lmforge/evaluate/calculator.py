"""A calculator for texts: `<<expression=` is followed by what the expression gives.

    completed("He has <<3*4=")  →  "12"

Calls are written as in GSM8K (Cobbe et al. 2021, section 4.1). The expression is parsed, never evaluated as Python:
numbers, + - * / ** % // and brackets, percent signs and thousands separators; results are exact fractions.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

_CALL = re.compile(r"<<([^<>=]{1,200})=$")
DIGITS = 60  # of a number, above and below the line; a result beyond is refused
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}


def calculate(expression: str) -> Fraction | None:
    """What an expression gives; None where it is none, divides by zero, or is larger than a calculator shows."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", expression).replace("$", "").replace("^", "**").replace("×", "*")
    text = re.sub(r"(\d+(?:\.\d+)?)\s*%(?!\s*[\d(])", r"(\1/100)", text.replace("÷", "/").replace("−", "-")).strip()
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    try:
        return _bounded(_value(ast.parse(text, mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError, OverflowError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, power = _value(left), _value(right)
            if power.denominator != 1 or abs(power) > 200:
                raise ValueError("a power that is no whole number, or too large")
            return _bounded(base ** int(power))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_value(left), _value(right)))
        case _:
            raise ValueError("not arithmetic")


def _bounded(number: Fraction) -> Fraction:
    if max(abs(number.numerator), number.denominator) >= 10**DIGITS:
        raise ValueError("too large")
    return number


def shown(number: Fraction) -> str:
    """As a calculator shows it: a whole number, or up to ten places."""
    if number.denominator == 1:
        return str(number.numerator)
    return f"{float(number):.10f}".rstrip("0").rstrip(".")


def completed(text: str) -> str | None:
    """What the calculator adds to a text: the result after an open call that can be worked out, else None. The model
    closes the call itself: what it learned to write there may be one token with what follows."""
    call = _CALL.search(text[-220:])
    result = calculate(call[1]) if call else None
    if call is None or result is None:
        return None
    return f"{' ' if call[1].startswith(' ') else ''}{shown(result)}"  # as the call is written
