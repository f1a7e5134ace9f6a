"""Word problems of arithmetic and algebra, from templates: a story with gaps, what the gaps may hold, and how the
answer follows.

A template's steps are equations `name = expression` worked out one after another; the last is the answer. The worked
solution is part of the text, and every number of it is checked by the interpreter. A fifth of each kind's templates is
held out: training texts never use them, so that a score on them is about problems, not about sentences met before.
"""

from __future__ import annotations

import dataclasses
import random
import re

from lmforge.corpus.sources.interpreter import value

HELD_OUT = 5  # every fifth template
NAMES = (
    "Anna",
    "Ben",
    "Chiara",
    "David",
    "Emeka",
    "Farah",
    "Grace",
    "Hiro",
    "Ines",
    "Jonas",
    "Kavya",
    "Liam",
    "Mei",
    "Nadia",
    "Omar",
    "Petra",
)
ITEMS = (
    "apples",
    "books",
    "coins",
    "eggs",
    "marbles",
    "pencils",
    "stamps",
    "shells",
    "cards",
    "buttons",
    "tickets",
    "oranges",
)
BOXES = ("boxes", "bags", "crates", "baskets", "shelves", "trays")


@dataclasses.dataclass(frozen=True)
class Template:
    """`text` has gaps {name}, {other}, {items}, {boxes} and numbers; `numbers` says of each how it grows: "small" (2 to
    4 + 2·level), "large" (level-dependent, up to 10^(level+1)), or an expression of earlier ones; `steps` lead to the
    answer; `unit` follows it."""

    text: str
    numbers: tuple[tuple[str, str], ...]
    steps: tuple[str, ...]
    unit: str = ""


def _t(text: str, numbers: str, steps: str, unit: str = "") -> Template:
    pairs = tuple((name.strip(), kind.strip()) for name, kind in (part.split(":") for part in numbers.split(";")))
    return Template(text, pairs, tuple(step.strip() for step in steps.split(";")), unit)


ARITHMETIC = (
    _t(
        "{name} has {a} {items} and buys {b} more. How many {items} does {name} have now?",
        "a: large; b: large",
        "x = a + b",
        "{items}",
    ),
    _t(
        "{name} had {c} {items} and gave {b} of them to {other}. How many {items} are left?",
        "a: large; b: large; c: a + b",
        "x = c - b",
        "{items}",
    ),
    _t(
        "There are {a} {boxes} with {b} {items} in each. How many {items} are there in all?",
        "a: small; b: large",
        "x = a * b",
        "{items}",
    ),
    _t(
        "{name} packs {c} {items} into {a} equal {boxes}. How many {items} go into each?",
        "a: small; b: large; c: a * b",
        "x = c / a",
        "{items}",
    ),
    _t(
        "{name} reads {a} pages a day. How many pages does {name} read in {b} days?",
        "a: large; b: small",
        "x = a * b",
        "pages",
    ),
    _t(
        "{name} buys {a} {items} at {b} euros each and a map for {c} euros. How much does {name} pay?",
        "a: small; b: small; c: large",
        "y = a * b; x = y + c",
        "euros",
    ),
    _t(
        "A train has {a} carriages with {b} seats each; {c} seats are taken. How many seats are free?",
        "a: small; d: large; c: large; b: c + d",
        "y = a * b; x = y - c",
        "seats",
    ),
    _t(
        "{name} has {a} {items}. {other} has {b} times as many. How many {items} do they have together?",
        "a: large; b: small",
        "y = a * b; x = a + y",
        "{items}",
    ),
    _t(
        "{name} saves {a} euros a week for {b} weeks and then spends {c} euros. How much is left?",
        "b: small; c: large; d: small; a: c + d",
        "y = a * b; x = y - c",
        "euros",
    ),
    _t(
        "A shop sold {a} {items} on Monday, {b} on Tuesday and {c} on Wednesday. How many {items} did it sell in the "
        "three days?",
        "a: large; b: large; c: large",
        "y = a + b; x = y + c",
        "{items}",
    ),
    _t(
        "{name} shares {d} {items} equally among {a} friends and keeps the {c} that are over. How many {items} does "
        "each friend get?",
        "c: small; e: small; a: c + e; b: large; f: a * b; d: f + c",
        "y = d - c; x = y / a",
        "{items}",
    ),
    _t(
        "A rectangle is {a} metres long and {b} metres wide. What is its area in square metres?",
        "a: large; b: small",
        "x = a * b",
        "square metres",
    ),
    _t(
        "A rectangle is {a} metres long and {b} metres wide. How long is the fence around it, in metres?",
        "a: large; b: large",
        "y = a + b; x = y * 2",
        "metres",
    ),
    _t(
        "A car goes {a} kilometres an hour for {b} hours, then {c} kilometres more. How far has it gone?",
        "a: large; b: small; c: large",
        "y = a * b; x = y + c",
        "kilometres",
    ),
    _t(
        "{name} bakes {a} trays of {b} rolls; {c} of the rolls burn. How many rolls are good?",
        "a: small; c: small; d: small; b: c + d",
        "y = a * b; x = y - c",
        "rolls",
    ),
    _t(
        "Each of {a} classes has {b} girls and {c} boys. How many pupils are there in all?",
        "a: small; b: large; c: large",
        "y = b + c; x = a * y",
        "pupils",
    ),
    _t(
        "{name} counted {c} {items}, which is {b} fewer than {other} counted. How many did {other} count?",
        "c: large; b: large",
        "x = c + b",
        "{items}",
    ),
    _t(
        "Of {d} {items}, {a} {boxes} hold {b} each and the rest lie on the floor. How many lie on the floor?",
        "a: small; b: small; c: large; e: a * b; d: e + c",
        "y = a * b; x = d - y",
        "{items}",
    ),
    _t(
        "{name} walks {a} metres to school and the same way back, {b} days a week. How many metres is that in a week?",
        "a: large; b: small",
        "y = 2 * a; x = y * b",
        "metres",
    ),
    _t(
        "{a} {boxes} hold {c} {items} in equal numbers. How many {items} are in {d} of the {boxes}?",
        "a: small; b: small; d: small; c: a * b",
        "y = c / a; x = y * d",
        "{items}",
    ),
)

ALGEBRA = (
    _t("Solve for x: {a}x + {b} = {c}.", "a: small; r: large; b: large; e: a * r; c: e + b", "y = c - b; x = y / a"),
    _t(
        "Solve for x: {a}x - {b} = {c}.",
        "a: small; b: small; d: large; r: b + d; e: a * r; c: e - b",
        "y = c + b; x = y / a",
    ),
    _t(
        "Three times a number plus {b} is {c}. What is the number?",
        "r: large; b: large; e: 3 * r; c: e + b",
        "y = c - b; x = y / 3",
    ),
    _t(
        "I think of a number, add {a} and multiply the sum by {b}. The result is {c}. What was the number?",
        "r: large; a: large; b: small; s: r + a; c: s * b",
        "y = c / b; x = y - a",
    ),
    _t(
        "I think of a number, multiply it by {a} and take away {b}. The result is {c}. What was the number?",
        "a: small; b: small; d: large; r: b + d; e: a * r; c: e - b",
        "y = c + b; x = y / a",
    ),
    _t(
        "{name} is {b} years older than {other}. Together they are {c} years old. How old is {other}?",
        "r: small; b: small; e: 2 * r; c: e + b",
        "y = c - b; x = y / 2",
        "years",
    ),
    _t(
        "{name} has {a} times as many {items} as {other}. Together they have {c}. How many {items} does {other} have?",
        "a: small; r: large; k: a + 1; c: k * r",
        "y = a + 1; x = c / y",
        "{items}",
    ),
    _t(
        "The sum of two consecutive whole numbers is {c}. What is the smaller one?",
        "r: large; e: 2 * r; c: e + 1",
        "y = c - 1; x = y / 2",
    ),
    _t("The sum of three consecutive whole numbers is {c}. What is the middle one?", "r: large; c: 3 * r", "x = c / 3"),
    _t(
        "A rectangle is {b} metres longer than it is wide. The fence around it is {c} metres long. How wide is it?",
        "r: large; b: small; e: 4 * r; f: 2 * b; c: e + f",
        "y = 2 * b; z = c - y; x = z / 4",
        "metres",
    ),
    _t("Solve for x: {a}(x + {b}) = {c}.", "a: small; r: large; b: small; s: r + b; c: a * s", "y = c / a; x = y - b"),
    _t(
        "Solve for x: {a}x + {b} = {d}x + {c}.",
        "d: small; k: small; a: d + k; r: large; b: small; e: k * r; c: e + b",
        "y = a - d; z = c - b; x = z / y",
    ),
    _t(
        "A taxi costs {a} euros and {b} euros for each kilometre. {name} pays {c} euros. How many kilometres was the "
        "ride?",
        "a: small; b: small; r: large; e: b * r; c: e + a",
        "y = c - a; x = y / b",
        "kilometres",
    ),
    _t(
        "{name} buys {a} {items} and a bag of {b} euros for {c} euros together. What does one of the {items} cost?",
        "a: small; b: large; r: small; e: a * r; c: e + b",
        "y = c - b; x = y / a",
        "euros",
    ),
    _t(
        "Two numbers add up to {c} and differ by {b}. What is the larger one?",
        "s: large; b: small; l: s + b; c: s + l",
        "y = c + b; x = y / 2",
    ),
    _t(
        "A number divided by {a} and then raised by {b} gives {c}. What is the number?",
        "a: small; b: large; q: large; c: q + b",
        "y = c - b; x = y * a",
    ),
    _t("Half of a number, less {b}, is {c}. What is the number?", "b: small; c: large", "y = c + b; x = 2 * y"),
    _t(
        "Tickets cost {a} euros for adults and {b} euros for children. {d} adults and some children paid {c} euros. "
        "How many children were there?",
        "a: small; b: small; d: small; r: large; e: a * d; f: b * r; c: e + f",
        "y = a * d; z = c - y; x = z / b",
        "children",
    ),
    _t(
        "{name} saves {a} euros a month and has {b} euros already. After how many months does {name} have {c} euros?",
        "a: small; b: large; r: small; e: a * r; c: e + b",
        "y = c - b; x = y / a",
        "months",
    ),
    _t(
        "{name} is {a} times as old as {other}. In {b} years the sum of their ages will be {c}. How old is {other} "
        "now?",
        "a: small; r: small; b: small; k: a + 1; e: k * r; f: 2 * b; c: e + f",
        "y = 2 * b; z = c - y; k = a + 1; x = z / k",
        "years",
    ),
)


def templates(kind: tuple[Template, ...], held_out: bool) -> tuple[Template, ...]:
    """The templates that training texts use, or those held out."""
    return tuple(template for number, template in enumerate(kind) if (number % HELD_OUT == HELD_OUT - 1) == held_out)


def problem(template: Template, level: int, rng: random.Random) -> tuple[str, str, str]:
    """(question, worked solution, answer) with the gaps filled; `level` 1 to 5 sets the size of the numbers."""
    numbers: dict[str, int] = {}
    for name, kind in template.numbers:
        largest = {"small": 4 + 2 * level, "large": 10 ** (level + 1) // (1 if level > 1 else 2)}.get(kind)
        numbers[name] = int(value(kind, numbers)) if largest is None else 2 + rng.randrange(largest - 1)
    name, other = rng.sample(NAMES, 2)
    words = {"name": name, "other": other, "items": rng.choice(ITEMS), "boxes": rng.choice(BOXES)}
    question = template.text.format(**words, **numbers)
    lines = []
    for step in template.steps:
        target, expression = (part.strip() for part in step.split("=", 1))
        numbers[target] = int(value(expression, numbers))
        lines.append(f"{_filled(expression, numbers)} = {numbers[target]}")
    answer = str(numbers["x"])
    unit = template.unit.format(**words)
    return question, f"{'; '.join(lines)}. The answer is {answer}{f' {unit}' if unit else ''}.", answer


def _filled(expression: str, numbers: dict[str, int]) -> str:
    return re.sub(r"[a-z]", lambda name: str(numbers[name.group()]), expression)
