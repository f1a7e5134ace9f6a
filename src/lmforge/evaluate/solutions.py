"""Programs a model wrote, tested in the sandbox; and how often one of k would pass.

    text ─program_in─▶ source ─▶ sandbox: the function called with hidden arguments ─▶ results, compared outside
                             └─▶ sandbox: the benchmark's own assertions behind it

A function's results leave the sandbox and what they ought to be never enters it, so a program cannot copy them.
"""

from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmforge.evaluate.sandbox import Limits, Outcome, run_program
from lmforge.intervals import Interval, Numbers, bootstrap, wilson

CALL_LIMITS = Limits(seconds=10, cpu_seconds=5, output_bytes=1 << 20)
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_CODE = re.compile(r"^(?:def|class|import|from|async def)\b|^@", re.MULTILINE)
_CALLS = """

def _lmforge_calls():
    import ast, os
    for number, given in enumerate(ast.literal_eval({given!r})):
        try:
            text = repr({name}(*given))
        except BaseException as error:
            text = "!" + type(error).__name__
        os.write(RESULT, (str(number) + " " + text[:{most}] + "\\n").encode("utf-8", "replace"))

_lmforge_calls()
"""
MOST_SHOWN = 20_000  # characters of one result


def program_in(text: str) -> str:
    """The program of an answer: its first block of code, else all from the first definition or import on."""
    fenced = _FENCE.search(text)
    if fenced:
        return fenced[1].strip("\n")
    first = _CODE.search(text)
    return (text[first.start() :] if first else text).strip("\n")


def results_of(
    source: str, name: str, cases: Sequence[Sequence[Any]], limits: Limits = CALL_LIMITS
) -> tuple[list[Any], Outcome]:
    """What the function `name` of a program gives for each list of arguments, run in the sandbox; `Raised` with the
    name of the exception where it raised one, or with what kept it from giving a plain value."""
    outcome = run_program(source + _CALLS.format(given=repr(list(cases)), name=name, most=MOST_SHOWN), limits)
    results: list[Any] = [Raised(outcome.status if outcome.status != "ok" else "nothing")] * len(cases)
    for line in outcome.result.decode("utf-8", "replace").splitlines():
        number, _, text = line.partition(" ")
        if number.isdigit() and int(number) < len(cases):
            results[int(number)] = _read(text)
    return results, outcome


class Raised:
    """In place of a result: why there is none."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __repr__(self) -> str:
        return f"raised {self.why}"


def _read(text: str) -> Any:
    if text.startswith("!"):
        return Raised(text[1:])
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return Raised("no plain value")


def called(source: str, name: str, cases: Sequence[Sequence[Any]]) -> list[Any]:
    """What a solution of ours gives; run here, since it is part of this program."""
    names: dict[str, Any] = {}
    exec(compile(source, f"<{name}>", "exec"), names)
    return [names[name](*copy.deepcopy(list(given))) for given in cases]


def alike(one: Any, two: Any) -> bool:
    """Whether two results are the same: tuples are lists, floats within 1e-9, True is not 1."""
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, int | float) and isinstance(two, int | float):
        return math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(alike(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key]) for key in one)
    return type(one) is type(two) and bool(one == two)


def passes_assertions(source: str, tests: str, limits: Limits = CALL_LIMITS) -> tuple[bool, str]:
    """Whether a program comes through its benchmark's own tests to the end, and why not."""
    mark = "_lmforge_came_through"
    outcome = run_program(f"{source}\n\n{tests}\n\nimport os as _os\n_os.write(RESULT, b'{mark}')\n", limits)
    if outcome.status == "ok" and outcome.result.decode("utf-8", "replace") == mark:
        return True, ""
    last = (outcome.stderr.strip().splitlines() or [""])[-1]
    return False, f"{outcome.status}: {last[:200]}".rstrip(": ")


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimate of the chance that one of k samples is right, 1 − C(n−c, k) / C(n, k) (Chen et al. 2021,
    eq. 1).

    Raises:
        ValueError: k is more than the samples.
    """
    if k > samples:
        raise ValueError(f"pass@{k} needs {k} samples, and there are {samples}")
    return 1.0 if samples - right < k else 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def pass_figures(counts: Sequence[tuple[int, int]], k: int, seed: int) -> tuple[float, Interval | None]:
    """(mean pass@k over items, its 95% interval) from (samples, right) of each: Wilson's where an item is one sample,
    else bootstrapped over items."""
    values = np.array([pass_at_k(samples, right, k) for samples, right in counts])
    if all(samples == 1 for samples, _ in counts):
        return float(values.mean()), wilson(int(values.sum()), len(values))

    def mean(rows: Numbers) -> float:
        return float(values[rows].mean())

    return float(values.mean()), bootstrap(mean, len(values), seed)
