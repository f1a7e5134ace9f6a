r"""Answers of mathematics: found in a text, and compared: exactly, as numbers, as expressions.

    final_answer("… so x = 4. The answer is 12 euros.")   →  "12 euros"
    same("\\frac{1}{2}", "0.5")   →  True
    same_symbolically([("x(x+1)", "x^2 + x")])   →  [True]

Nothing of a text is evaluated as Python. Numbers go through the calculator's parser; expressions are rewritten from
LaTeX and checked to consist of arithmetic, known functions and single letters before SymPy sees them, and SymPy runs in
the sandbox, within its limits.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from lmforge.evaluate.calculator import calculate
from lmforge.evaluate.sandbox import Limits, run_program

FUNCTIONS = ("sqrt", "log", "ln", "exp", "sin", "cos", "tan", "abs", "Abs", "pi", "binomial", "factorial")
SECONDS = 4  # for one comparison by SymPy
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands separators."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "").replace("$", "").strip() if found else None


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{…} of a text, with its brackets balanced."""
    at = text.rfind("\\boxed{")
    if at < 0:
        return None
    depth, start = 1, at + len("\\boxed{")
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def final_answer(text: str) -> str:
    r"""What a text gives as its answer: the last \boxed, else what follows "####", else the last "answer is" up to the
    end of its sentence, else the last number, else the last line."""
    found = boxed(text)
    if found is not None:
        return found.strip()
    if "####" in text:
        return (text.rpartition("####")[2].strip().split("\n") or [""])[0].strip()
    said = re.findall(r"[Aa]nswer(?: is|:)\s*(.+?)(?:\.(?:\s|$)|\n|$)", text)
    if said:
        return str(said[-1]).strip().strip("*$").strip()
    return last_number(text) or (text.strip().split("\n") or [""])[-1].strip()


def plain(answer: str) -> str:
    r"""An answer without what does not count: dollar signs, \text, units in degrees, spaces of LaTeX, a final stop."""
    text = answer.strip().strip("$").strip().rstrip(".")
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\(?:left|right|!|,|;|:|quad|qquad|displaystyle)(?![a-zA-Z])", "", text)
    for old, new in (
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("^\\circ", ""),
        ("^{\\circ}", ""),
        ("\\%", ""),
        ("\\$", ""),
    ):
        text = text.replace(old, new)
    return re.sub(r"\s+", " ", text).strip()


def expression(answer: str) -> str | None:
    r"""An answer as an expression of Python's syntax with SymPy's names; None where it holds anything but numbers,
    single letters, arithmetic and known functions."""
    text = plain(answer).replace("\\cdot", "*").replace("\\times", "*").replace("\\div", "/").replace("\\pi", "pi")
    text = re.sub(r"\\(sqrt|log|ln|exp|sin|cos|tan)(?![a-zA-Z])", r"\1", text)
    text = re.sub(r"\\frac\s*(\d)\s*(?=[\d{])", r"\\frac{\1}", text)
    text = re.sub(r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}", text)
    text = re.sub(r"sqrt\s*(\d|[a-z](?![a-z]))", r"sqrt(\1)", text)
    for _ in range(8):  # innermost first
        new = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
        new = re.sub(r"sqrt\s*\[(\d+)\]\s*\{([^{}]*)\}", r"((\2)**(1/(\1)))", new)
        new = re.sub(r"(sqrt|log|ln|exp|sin|cos|tan)\s*\{([^{}]*)\}", r"\1(\2)", new)
        new = re.sub(r"\^\s*\{([^{}]*)\}", r"^(\1)", new)
        if new == text:
            break
        text = new
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("^", "**").replace("−", "-")
    words = "|".join(FUNCTIONS)
    text = re.sub(rf"(?<=[\d)])\s*(?=\(|{words}|[a-zA-Z])", "*", text)  # 2x, 3(x+1), (x)(y)
    text = re.sub(rf"(?<![a-zA-Z])([a-zA-Z])\s*(?=\(|(?:{words})\b)", r"\1*", text)
    text = re.sub(r"(?<![a-zA-Z])([a-zA-Z])\s+(?=[a-zA-Z](?![a-zA-Z]))", r"\1*", text)
    text = re.sub(r"[a-zA-Z]{2,}", lambda run: run[0] if run[0] in FUNCTIONS else "*".join(run[0]), text)  # qr
    return text if _is_plain(text) else None


def _is_plain(text: str) -> bool:
    """Whether a text is arithmetic over numbers, single letters and known functions, of a size that is no trap."""
    if len(text) > 400:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        match node:
            case ast.BinOp(op=ast.Pow(), right=power) if any(_is_large(inner) for inner in ast.walk(power)):
                return False
            case ast.Expression() | ast.BinOp() | ast.UnaryOp() | ast.operator() | ast.unaryop() | ast.Load():
                continue
            case ast.Constant(value=int() | float()):
                continue
            case ast.Name(id=name) if len(name) == 1 or name in FUNCTIONS:
                continue
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
                continue
            case _:
                return False
    return True


def _is_large(node: ast.AST) -> bool:
    """Whether a part of an exponent makes a power that nobody can write down."""
    match node:
        case ast.BinOp(op=ast.Pow()):
            return True
        case ast.Constant(value=int() | float() as size):
            return abs(size) > 1000
        case _:
            return False


def number(answer: str) -> Fraction | None:
    """An answer that is a number, exactly, whatever unit follows it; None where it is none or there are several."""
    text = plain(answer)
    made = expression(answer)
    if made is not None and (value := calculate(made)) is not None:
        return value
    found = re.fullmatch(
        r"(?:[A-Za-z] ?= ?)?(-?\$?\d[\d,]*(?:\.\d+)?(?: ?/ ?\d+)?) ?%?(?: (?!or\b|and\b)[A-Za-z][A-Za-z .²³^\d]*)?",
        text,
    )
    return calculate(found[1]) if found else None


def parts(answer: str) -> list[str]:
    """The several answers of a list such as "2 and 5" or "x = 2 or x = 5" or "1, 2"; one where it is no list."""
    text = re.sub(r"\b[A-Za-z] ?= ?", "", plain(answer)).strip("{}").replace("\\{", "").replace("\\}", "")
    if re.search(r"[([]", text):
        return [plain(answer)]
    found = [part.strip() for part in re.split(r",\s+| and | or |;", text) if part.strip()]
    return found if len(found) > 1 else [plain(answer)]


def same(given: str, wanted: str) -> bool:
    """Whether two answers are the same: letter by letter, as numbers, or each of a list in any order."""
    one_text, two_text = (re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", plain(each)).lower() for each in (given, wanted))
    if one_text == two_text:
        return True
    if (one := _tuple(one_text)) and (two := _tuple(two_text)):
        (first_ends, *first), (second_ends, *second) = one, two
        return first_ends == second_ends and len(first) == len(second) and all(map(same, first, second))
    first, second = parts(given), parts(wanted)
    if len(first) != len(second):
        return False
    if len(first) > 1:
        left = list(second)
        for each in first:
            match = next((other for other in left if same(each, other)), None)
            if match is None:
                return False
            left.remove(match)
        return True
    value, right = number(given), number(wanted)
    return value is not None and right is not None and value == right


def _tuple(text: str) -> list[str] | None:
    """(brackets, item, item …) of a point or an interval such as "(1,2]"; None for what is none."""
    found = re.fullmatch(r"([(\[])([^()\[\]]*,[^()\[\]]*)([)\]])", text)
    return [found[1] + found[3], *found[2].split(",")] if found else None


def same_symbolically(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """For each pair whether the two are the same: `same`, else SymPy finds their difference to be zero.

    SymPy runs once for all pairs, in the sandbox, `SECONDS` for each; what it does not finish is not the same. Without
    SymPy (pip install sympy) only `same` decides.
    """
    result = [same(given, wanted) for given, wanted in pairs]
    left = [
        (place, one, two)
        for place, (given, wanted) in enumerate(pairs)
        if not result[place] and (one := expression(given)) and (two := expression(wanted))
    ]
    found = importlib.util.find_spec("sympy") if left else None
    if found is None or found.origin is None:
        return result
    folder = Path(found.origin).parent.parent
    limits = Limits(seconds=10 + SECONDS * len(left), cpu_seconds=10 + SECONDS * len(left), memory_bytes=2 << 30)
    asked = json.dumps([[one, two] for _, one, two in left])
    outcome = run_program(_PROGRAM.format(seconds=SECONDS), limits, stdin=asked, packages=(folder,))
    answers = dict(line.split() for line in outcome.stdout.splitlines() if line.count(" ") == 1)
    for line, (place, _, _) in enumerate(left):
        result[place] = answers.get(str(line)) == "True"
    return result


# numbers in place of letters tell most that differ at once; what agrees in them is settled by algebra
_PROGRAM = """
import json, signal, sys
from sympy import Abs, Rational, Symbol, binomial, cos, exp, factorial, log, pi, simplify, sin, sqrt, tan
from sympy.parsing.sympy_parser import parse_expr

class Over(Exception):
    pass

def over(*_):
    raise Over

def is_zero(difference):
    values = {{letter: Rational(37 + 10 * n, 31) for n, letter in enumerate(sorted(difference.free_symbols, key=str))}}
    if abs(complex(difference.subs(values).evalf(30))) > 1e-12:
        return False
    return simplify(difference) == 0

names = dict(sqrt=sqrt, log=log, ln=log, exp=exp, sin=sin, cos=cos, tan=tan, abs=Abs, Abs=Abs, pi=pi,
             binomial=binomial, factorial=factorial)
names.update((letter, Symbol(letter)) for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
signal.signal(signal.SIGVTALRM, over)
for place, (one, two) in enumerate(json.loads(sys.stdin.read())):
    signal.setitimer(signal.ITIMER_VIRTUAL, {seconds})
    try:
        same = is_zero(parse_expr(one, local_dict=names) - parse_expr(two, local_dict=names))
    except BaseException:
        same = False
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    print(place, same, flush=True)
"""
