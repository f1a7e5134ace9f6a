"""Word problems of algebra for school grades 4 to 12, from templates: linear and quadratic equations, systems, rates,
mixtures, progressions, exponentials, logarithms.

    problem = made(random.Random(1), held_out=True)
    problem.question   "When 7 is added to 3 times a number, the result is 22. Find the number."
    problem.working    "3x + 7 = 22; 3x = << 22 - 7 = 15>>; x = << 15 / 3 = 5>>. The answer is 5."

The kinds stand in algebra.toml. `<< expression = value>>` are calls of a calculator, much as GSM8K writes them (Cobbe
et al. 2021, section 4.1): a model that has one writes as far as the equals sign. Of each kind some templates are held
out: training texts never use them. What differs between the two is the wording and the order in which it gives the
numbers; the kind of problem, the way of working and the names and things are the same.
"""

from __future__ import annotations

import dataclasses
import random
import re
import tomllib
from functools import cache
from importlib.resources import files

from lmforge.corpus.sources.interpreter import value
from lmforge.corpus.sources.wordproblems import BOXES, ITEMS, NAMES

TOWNS = ("Arden", "Brook", "Calder", "Dale", "Elm", "Ford", "Glen", "Hale", "Kirk", "Lund", "Moor", "Norton")
GRADES = (4, 12)
GRADES_OF_LEVEL = {1: (4, 5), 2: (6, 7), 3: (8, 9), 4: (10, 10), 5: (11, 12)}  # of the procedural source
_CALL = re.compile(r"<<(\w+)([:;#]) ([^>]*)>>")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of problem: `numbers` as (name, low, high) or (name, value), all expressions of earlier ones; see
    algebra.toml."""

    name: str
    grade: int
    numbers: tuple[tuple[str, ...], ...]
    working: str
    answer: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class AlgebraProblem:
    """`template` is the text it was made from, `wording` what was chosen of it, with its gaps; `working` ends with the
    answer."""

    kind: str
    grade: int
    template: str
    wording: str
    question: str
    working: str
    answer: str


@cache
def kinds() -> tuple[Kind, ...]:
    """The kinds in the order of the file, which is that of grades."""
    read = tomllib.loads(files("lmforge.corpus.sources").joinpath("algebra.toml").read_text(encoding="utf-8"))
    return tuple(
        Kind(
            name,
            table["grade"],
            tuple(map(_number, table["numbers"].split(";"))),
            table["working"],
            table["answer"],
            tuple(table["train"]),
            tuple(table["held_out"]),
        )
        for name, table in read.items()
    )


def _number(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r"=|:|\.\.", text))


def made(
    rng: random.Random, held_out: bool = False, grades: tuple[int, int] = GRADES, kind: str | None = None
) -> AlgebraProblem:
    """A problem of a kind of these grades, or of the one named; each kind is as likely as another.

    Raises:
        ValueError: no kind has such a grade.
    """
    within = [each for each in kinds() if grades[0] <= each.grade <= grades[1] and kind in (None, each.name)]
    if not within:
        raise ValueError(f"no kind of algebra problems is of grades {grades[0]} to {grades[1]}; there are 4 to 12")
    chosen = rng.choice(within)
    numbers: dict[str, int] = {}
    for gap, *how in chosen.numbers:
        bounds = [int(value(each, numbers)) for each in how]
        numbers[gap] = rng.randint(bounds[0], bounds[-1])
    template = rng.choice(chosen.held_out if held_out else chosen.train)
    (name, other), (town, far) = rng.sample(NAMES, 2), rng.sample(TOWNS, 2)
    words = {
        "name": name,
        "other": other,
        "town": town,
        "far": far,
        "items": rng.choice(ITEMS),
        "boxes": rng.choice(BOXES),
    }
    text = sentences(template, rng)
    question = " ".join(text.format(**words, **numbers).split())
    working = worked(chosen.working, numbers)
    answer = chosen.answer.format(**numbers)
    solution = f"{working}. The answer is {answer}."
    return AlgebraProblem(chosen.name, chosen.grade, template, text, question, solution, answer)


def sentences(template: str, rng: random.Random) -> str:
    """A template with its choices made, the innermost first, and its facts in an order that is drawn."""
    text = template
    while _CHOICE.search(text):
        text = _CHOICE.sub(lambda choice: rng.choice(choice[1].split("|")), text)
    *facts, asked = [part.strip() for part in text.split("@")]
    rng.shuffle(facts)
    return " ".join([*facts, asked]).replace(" ,", ",").replace(" ?", "?").replace(" .", ".").replace(" ;", ";")


def worked(working: str, numbers: dict[str, int]) -> str:
    """The working with its gaps filled and its calls worked out, one after another; enters their results in
    `numbers`."""
    text, start = "", 0
    for call in _CALL.finditer(working):
        text += working[start : call.start()].format(**numbers)
        name, how, expression = call.groups()
        if how == "#":
            large, base = (int(value(part, numbers)) for part in expression.split(" / "))
            calls, numbers[name] = divisions(large, base)
            text += calls
        else:
            numbers[name] = int(value(expression, numbers))
            shown = re.sub(r"[a-zA-Z]\w*", lambda known: str(numbers[known[0]]), expression)
            # what is seen and not calculated, a root, uses numbers that a reader does not have
            text += f"<< {shown} = {numbers[name]}>>" if how == ":" else str(numbers[name])
        start = call.end()
    return text + working[start:].format(**numbers)


def divisions(large: int, base: int) -> tuple[str, int]:
    """How often `base` divides a power of it until 1 is left, in calls that are counted: what a logarithm is, for a
    reader who can only divide. (the calls, their number)

    Raises:
        ValueError: `large` is no such power.
    """
    calls: list[str] = []
    while large != 1:
        if base < 2 or large < 1 or large % base:
            raise ValueError(f"{large} is no power of {base}")
        calls.append(f"{len(calls) + 1}: << {large} / {base} = {large // base}>>")
        large //= base
    return ", ".join(calls), len(calls)
