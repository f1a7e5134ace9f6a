"""Tasks made by code, with answers that code checks: no model, no download, as many as wanted.

    problem = make("sort", seed=1, index=7, level=3)
    check(problem, "3 8 21")      does this reply answer it?

A problem is a pure function of (task, seed, index, level, held_out). `proved` works its answer out a second time with
our own interpreter. As a source, `kind = "procedural"` writes several problems to a document; the loss counts on the
answers alone, for nobody can foretell the numbers of a question.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmforge.corpus.sources import algebra, algorithms
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.files import SourcePart
from lmforge.corpus.sources.interpreter import value
from lmforge.corpus.sources.programs import WORDS, program
from lmforge.corpus.sources.wordproblems import ALGEBRA, ARITHMETIC, Template, problem, templates
from lmforge.errors import InputError
from lmforge.recipe import Source
from lmforge.record import write_atomic

LEVELS = range(1, 6)
DOCUMENTS = 10_000  # where the recipe does not say
PART_DOCUMENTS = 10_000
_GIVEN = re.compile(r"(?<= =)[^<>=]*(?=>>)")  # what follows the equals sign of a calculator's call
_OPEN, _CLOSE = "([{<", ")]}>"


@dataclasses.dataclass(frozen=True)
class Problem:
    """`working` ends with the answer and is what a text shows; `proof` is an expression for the answer ("" where there
    is none)."""

    task: str
    question: str
    working: str
    answer: str
    proof: str = ""


Made = tuple[str, str, str, str]  # question, working, answer, proof
Maker = Callable[[random.Random, int, bool], Made]


def make(task: str, seed: int, index: int, level: int = 2, held_out: bool = False) -> Problem:
    """Problem number `index` of a task. `held_out` takes the templates of word problems that training texts never show;
    other tasks have none, and take numbers from a random stream of their own."""
    rng = random.Random(f"{task} {seed} {index} {level} {held_out}")
    return Problem(task, *TASKS[task](rng, level, held_out))


def check(asked: Problem, reply: str) -> bool:
    """Whether a reply answers: its last number where a number is asked for, else its last line, or all lines a program
    would print, blanks and a leading "The answer is" aside."""
    if re.fullmatch(r"-?\d+", asked.answer):
        _, said, end = reply.rpartition("answer is")
        numbers = re.findall(r"-?\d+", end.replace(",", ""))
        return bool(numbers) and int(numbers[-1]) == int(asked.answer) and (not said or len(numbers) == 1)
    lines = [" ".join(line.split()) for line in reply.strip().split("\n")]
    wanted = [" ".join(line.split()) for line in asked.answer.split("\n")]
    return lines[-len(wanted) :] == wanted or (
        len(wanted) == 1 and lines[-1].rstrip(".").endswith(f"answer is {wanted[0]}")
    )


def proved(asked: Problem) -> str | None:
    """The answer as the proof gives it (a list as its items, blanks between them); None for a problem without one."""
    answer = value(asked.proof) if asked.proof else None
    return None if answer is None else _shown(answer) if isinstance(answer, list) else str(answer)


def document(tasks: Sequence[str], index: int, levels: tuple[int, int], problems: int) -> tuple[str, dict[str, Any]]:
    """(text, meta) of document `index`: `problems` problems of one task; meta has synthetic, task, level and
    loss_spans."""
    task, level = tasks[index % len(tasks)], levels[0] + index // len(tasks) % (levels[1] - levels[0] + 1)
    text, spans = "", []
    for number in range(problems):
        each = make(task, 0, index * problems + number, level)
        text += f"Question: {each.question}\nAnswer:"
        spans += _counted(task, len(text), f"{_gap(each.working)}{each.working}\n")
        text += f"{_gap(each.working)}{each.working}\n{'' if number == problems - 1 else chr(10)}"
    return text, {"synthetic": "procedural", "task": task, "level": level, "loss_spans": spans}


def _counted(task: str, start: int, answer: str) -> list[list[int]]:
    """The spans of an answer that count in the loss: all of it, less what a calculator gives where one is at hand."""
    cuts = [match.span() for match in _GIVEN.finditer(answer)] if task == "algebra_calculator" else []
    edges = [0, *(edge for cut in cuts for edge in cut), len(answer)]
    return [[start + a, start + b] for a, b in zip(edges[::2], edges[1::2], strict=True)]


def write_exercises(
    path: Path, task: str, count: int, level: int = 0, seed: int = 0, chat: bool = False, held_out: bool = False
) -> dict[str, Any]:
    """Write `count` problems as JSON lines: {"text"} as the source writes them, or {"messages"} of a chat. Level
    0 takes the levels in turn. The same arguments give the same bytes.

    Raises:
        InputError: no such task or level, or a number of problems below 1.
        LmforgeError: nothing can be written there.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"exercises {task!r}: no such task{hint} There are {', '.join(TASKS)}")
    if level not in (0, *LEVELS) or count < 1:
        raise InputError(f"exercises: level {level}, count {count}; give a level of 0 to 5 and a count of at least 1")
    lines = []
    for index in range(count):
        each = make(task, seed, index, level or 1 + index % len(LEVELS), held_out)
        if chat:
            turns = [{"role": "user", "content": each.question}, {"role": "assistant", "content": each.working}]
            content: dict[str, Any] = {"messages": turns}
        else:
            content = {"text": f"Question: {each.question}\nAnswer:{_gap(each.working)}{each.working}\n"}
        lines.append(json.dumps({**content, "task": task}, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))
    return {"path": str(path), "task": task, "problems": count}


def procedural_parts(source: Source, _notices: Counter[str]) -> list[SourcePart]:
    """Ranges of documents, of about 4 MB each."""
    wanted = source.documents or DOCUMENTS
    return [
        SourcePart(f"{start}", (), start, min(start + PART_DOCUMENTS, wanted))
        for start in range(0, wanted, PART_DOCUMENTS)
    ]


def read_procedural(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """The documents of one range."""
    source = reading.source
    for index in range(part.start, part.stop or 0):
        text, meta = document(source.tasks or tuple(TASKS), index, source.levels or (1, 3), source.problems or 4)
        yield reading.document(str(index), text, meta=meta)


def _gap(working: str) -> str:
    return "\n" if "\n" in working else " "


# The tasks


def _list(rng: random.Random, level: int) -> list[int]:
    return [rng.randrange(10 ** (1 + level // 2)) for _ in range(2 + level + rng.randrange(level + 1))]


def _words(rng: random.Random, level: int) -> list[str]:
    return rng.sample(WORDS, min(len(WORDS), 1 + level + rng.randrange(level + 1)))


def _shown(items: Sequence[Any]) -> str:
    return " ".join(map(str, items))


def _same(question: str, answer: str, proof: str) -> Made:
    return question, answer, answer, proof


def _sum(rng: random.Random, level: int, _: bool) -> Made:
    a, b, op = rng.randrange(10**level), rng.randrange(10**level), rng.choice("+-*")
    return _same(f"What is {a} {op} {b}?", str(value(f"{a} {op} {b}")), f"{a} {op} {b}")


def _expression(rng: random.Random, level: int, _: bool) -> Made:
    text = str(rng.randrange(10))
    for _step in range(1 + level):
        other, op = rng.randrange(1, 10), rng.choice("+-*")
        text = f"({text}) {op} {other}" if op == "*" and " " in text else f"{text} {op} {other}"
    return _same(f"Work out {text}.", str(value(text)), text)


def _division(rng: random.Random, level: int, _: bool) -> Made:
    a, b = rng.randrange(10 ** (level + 1)), 2 + rng.randrange(8 + 2 * level)
    return _same(
        f"Divide {a} by {b}. Give the quotient and the remainder.", f"{a // b} {a % b}", f"[{a} // {b}, {a} % {b}]"
    )


def _sequence(rng: random.Random, level: int, _: bool) -> Made:
    start, by, factor = rng.randrange(10 * level), 1 + rng.randrange(5 * level), rng.choice((1, 1, 2))
    items = [start]
    for _step in range(4):
        items.append(items[-1] * factor + by)
    return _same(f"Which number comes next? {_shown(items[:-1])}", str(items[-1]), f"{items[-2]} * {factor} + {by}")


def _copy(rng: random.Random, level: int, _: bool) -> Made:
    items = rng.choice((_list, _words))(rng, level)
    return _same(f"Copy: {_shown(items)}", _shown(items), repr(_shown(items)))


def _reverse(rng: random.Random, level: int, _: bool) -> Made:
    items = list(map(str, rng.choice((_list, _words))(rng, level)))
    return _same(f"Write these in reverse order: {_shown(items)}", _shown(items[::-1]), f"{items}[::-1]")


def _spell(rng: random.Random, level: int, _: bool) -> Made:
    word = "".join(rng.choice(WORDS) for _ in range((level + 1) // 2))
    return _same(f"Spell '{word}' backwards.", word[::-1], f"{word!r}[::-1]")


def _sort(rng: random.Random, level: int, _: bool) -> Made:
    items, down = _list(rng, level), rng.randrange(2)
    order = "from the largest to the smallest" if down else "from the smallest to the largest"
    return _same(
        f"Sort {order}: {_shown(items)}",
        _shown(sorted(items, reverse=bool(down))),
        f"sorted({items}){'[::-1]' if down else ''}",
    )


def _alphabet(rng: random.Random, level: int, _: bool) -> Made:
    items = _words(rng, level)
    return _same(f"Put these words in alphabetical order: {_shown(items)}", _shown(sorted(items)), f"sorted({items})")


def _extreme(rng: random.Random, level: int, _: bool) -> Made:
    items, which = _list(rng, level), rng.choice(("max", "min"))
    name = "largest" if which == "max" else "smallest"
    return _same(
        f"Which number is the {name}? {_shown(items)}",
        str(max(items) if which == "max" else min(items)),
        f"{which}({items})",
    )


def _count(rng: random.Random, level: int, _: bool) -> Made:
    kinds = rng.sample(WORDS, 2 + level // 2)
    items, asked = [rng.choice(kinds) for _ in range(3 + 2 * level)], kinds[0]
    return _same(
        f"How often does '{asked}' occur? {_shown(items)}",
        str(items.count(asked)),
        f"len([x for x in {items} if x == {asked!r}])",
    )


def _letters(rng: random.Random, level: int, _: bool) -> Made:
    word = " ".join(rng.sample(WORDS, (level + 1) // 2))
    letter = rng.choice(word.replace(" ", ""))
    return _same(
        f"How many times does the letter '{letter}' occur in '{word}'?",
        str(word.count(letter)),
        f"len([x for x in {word!r} if x == {letter!r}])",
    )


def _distinct(rng: random.Random, level: int, _: bool) -> Made:
    items = [rng.randrange(3 + level) for _ in range(4 + 2 * level)]
    kept = list(dict.fromkeys(items))
    return _same(f"Leave out what was there before: {_shown(items)}", _shown(kept), "")


def _brackets(rng: random.Random, level: int, _: bool) -> Made:
    text = _nested(rng, 2 + 2 * level)
    if rng.randrange(2):  # break it at one place
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice([sign for sign in _OPEN + _CLOSE if sign != text[place]]) + text[place + 1 :]
    answer = "yes" if balanced(text) else "no"
    return f"Are the brackets in {text} balanced?", answer, answer, ""


def _close(rng: random.Random, level: int, _: bool) -> Made:
    text = _nested(rng, 2 + 2 * level)
    cut = 1 + rng.randrange(len(text) - 1)
    while balanced(text[:cut]):
        cut -= 1
    missing = closing(text[:cut]) or ""
    return f"Which brackets are missing at the end of {text[:cut]} ?", missing, missing, ""


def _nested(rng: random.Random, pairs: int) -> str:
    if pairs <= 0:
        return ""
    inside, kind = rng.randrange(pairs), rng.randrange(len(_OPEN))
    return _OPEN[kind] + _nested(rng, inside) + _CLOSE[kind] + _nested(rng, pairs - 1 - inside)


def balanced(text: str) -> bool:
    """Whether every bracket in `text` is closed by its own kind, in order."""
    return closing(text) == ""


def closing(text: str) -> str | None:
    """The brackets that `text` still needs at its end; None where a bracket closes what was not opened."""
    open_: list[str] = []
    for sign in text:
        if sign in _OPEN:
            open_.append(_CLOSE[_OPEN.index(sign)])
        elif sign in _CLOSE and (not open_ or open_.pop() != sign):
            return None
    return "".join(reversed(open_))


def _program(rng: random.Random, level: int, _: bool) -> Made:
    text, printed = program(rng, level)
    answer = printed.rstrip("\n")
    return f"What does this program print?\n{text.rstrip()}", answer, answer, ""


def _story(kind: tuple[Template, ...]) -> Maker:
    def made(rng: random.Random, level: int, held_out: bool) -> Made:
        return *problem(rng.choice(templates(kind, held_out)), level, rng), ""

    return made


def _algebra(rng: random.Random, level: int, held_out: bool) -> Made:
    made = algebra.made(rng, held_out, algebra.GRADES_OF_LEVEL[level])
    return made.question, made.working, made.answer, ""


def _algorithm(rng: random.Random, _level: int, held_out: bool) -> Made:
    made = algorithms.made(rng, held_out)
    return made.question, made.solution, made.solution, ""


TASKS: dict[str, Maker] = {
    "sum": _sum,
    "expression": _expression,
    "division": _division,
    "sequence": _sequence,
    "arithmetic_words": _story(ARITHMETIC),
    "algebra_words": _story(ALGEBRA),
    "copy": _copy,
    "reverse": _reverse,
    "spell": _spell,
    "sort": _sort,
    "alphabet": _alphabet,
    "extreme": _extreme,
    "count": _count,
    "letters": _letters,
    "distinct": _distinct,
    "brackets": _brackets,
    "close": _close,
    "program": _program,
    "algebra": _algebra,
    "algebra_calculator": _algebra,
    "algorithm": _algorithm,
}
