"""Mathematics: word problems made by code (school grades 4 to 12) and the packs GSM8K, SVAMP, ASDiv, MATH, MAWPS, AQuA.

    question, after answered ones ─▶ the model writes, with a calculator where wanted ─▶ its answer found ─▶ equal?

An answer is right when it is the same number, the same list of numbers, or, where SymPy decides, the same expression
(`evaluate.equality`). Rows have the grade or kind of a problem, and the score its share by these.
"""

from __future__ import annotations

import abc
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import NonNegativeInt

from lmforge.corpus.sources.algebra import GRADES, kinds, made
from lmforge.evaluate.equality import final_answer, last_number, number, same, same_symbolically
from lmforge.evaluate.packs import Row, find_pack, open_pack
from lmforge.evaluate.task import SEED, Content, Context, Score, ShareMap, Task, is_number, register
from lmforge.evaluate.writing import Writing, write
from lmforge.intervals import wilson
from lmforge.recipe import Recipe
from lmforge.recipe.evaluate import TaskSettings
from lmforge.recipe.types import Positive
from lmforge.record import hash_json
from lmforge.tokens.chat import has_chat_tokens, render_chat

FORMAT = 1
STOP = ("\nQuestion:", "\n\n")
EACH = 20  # problems of a kind, of those made by code
_CALL = re.compile(r"<<[^<>]*>>")


class MathematicsSettings(TaskSettings):
    """Settings of word problems; `limit` counts problems, chosen by their hash."""

    shots: NonNegativeInt | None = None  # answered problems before each; default: the task's
    calculator: bool = False  # whether <<expression= in what the model writes is followed by its value
    new_tokens: Positive = 256  # that an answer may have
    chat: bool = False  # asked as a turn of a conversation, where the vocabulary has these


class AlgebraSettings(MathematicsSettings):
    """Settings of `algebra`."""

    grades: tuple[Positive, Positive] = GRADES  # the least and the greatest
    held_out: bool = True  # templates that training texts never use; false: those they use


class MathProblem(NamedTuple):
    """A problem: its name, what it counts towards (a grade or kind), and how an answer looks."""

    id: str
    part: str
    question: str
    worked: str
    answer: str


class Mathematics(Task[Any], abc.ABC):
    """What tasks that ask for an answer by writing it have in common."""

    settings: type[Any] = MathematicsSettings
    family = "mathematics"
    shots = 0  # default
    symbolic = False

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """Every problem."""
        return {}

    @abc.abstractmethod
    def problems(self, settings: Any) -> tuple[list[MathProblem], list[MathProblem], Any]:
        """(those that are asked, those that may be shown answered, what says which data these are)."""

    def run(self, context: Context, settings: Any) -> Score:
        """Ask every problem."""
        asked, answered, data = self.problems(settings)
        wanted = self.shots if settings.shots is None else settings.shots
        shown = [_shown(each, settings.calculator) for each in answered[:wanted]]
        prompts = [_prompt(context, each.question, shown, settings.chat) for each in asked]
        stop = () if settings.chat else STOP
        how = Writing(settings.new_tokens, stop, calculator=settings.calculator, seed=SEED)
        texts = [samples[0] for samples in write(context, prompts, how, self.name)]
        given = [self.answer_in(text) for text in texts]
        pairs = [(each, problem.answer) for each, problem in zip(given, asked, strict=True)]
        right = same_symbolically(pairs) if self.symbolic else [same(*pair) for pair in pairs]
        right = [
            each or same(final_answer(text), problem.answer)
            for each, text, problem in zip(right, texts, asked, strict=True)
        ]
        rows = [
            {
                "id": problem.id,
                "part": problem.part,
                "prompt": problem.question,
                "completion": text,
                "answer": problem.answer,
                "given": answer,
                "correct": correct,
            }
            for problem, text, answer, correct in zip(asked, texts, given, right, strict=True)
        ]
        key = {
            "data": data,
            "prompts": hash_json([list(prompt) for prompt in prompts]),
            "decoding": {"greedy": True, "calculator": settings.calculator, "new_tokens": settings.new_tokens},
            "shots": len(shown),
            "code": FORMAT,
        }
        return _score(rows, key)

    def answer_in(self, text: str) -> str:
        """The answer that a text gives."""
        found = final_answer(text)
        return (
            found if number(found) is not None or " and " in found else last_number(found) or last_number(text) or found
        )

    def headline(self, score: Content) -> str:
        """The share in percent."""
        value = score.get("value")
        return f"{self.name} {100 * value:.0f}% ({score.get('items')} problems)" if is_number(value) else ""

    def maps(self, model: str, score: Content) -> list[ShareMap]:
        """The share by grade or kind."""
        parts = score.get("parts")
        if not isinstance(parts, dict) or len(parts) < 2:
            return []
        rows = [(str(part), [float(each["value"])]) for part, each in parts.items()]
        return [ShareMap(f"{self.name}, {model}: % right", ["right"], rows, "by grade or kind of problem")]


def _score(rows: list[dict[str, Any]], key: dict[str, Any]) -> Score:
    right = sum(row["correct"] for row in rows)
    low, high = wilson(right, len(rows))
    own: dict[str, list[bool]] = {}
    for row in rows:
        own.setdefault(row["part"], []).append(row["correct"])
    parts = {}
    for part in sorted(
        own, key=lambda name: [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", name)]
    ):
        interval = wilson(sum(own[part]), len(own[part]))
        parts[part] = {
            "value": sum(own[part]) / len(own[part]), "low": interval[0], "high": interval[1], "items": len(own[part]),
        }  # fmt: skip
    value = right / len(rows) if rows else None
    return Score("accuracy", value, low, high, len(rows), True, key, {"parts": parts}, rows, ("correct", ""))


def _shown(problem: MathProblem, calculator: bool) -> tuple[str, str]:
    """A problem and its worked answer, as they stand before the question that is asked."""
    return problem.question, problem.worked if calculator else _CALL.sub("", problem.worked)


def _prompt(context: Context, question: str, shown: Sequence[tuple[str, str]], chat: bool) -> list[int]:
    tokenizer = context.tokenizer
    if chat and has_chat_tokens(tokenizer):
        turns = [
            {"role": role, "content": text}
            for pair in shown
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return list(render_chat([*turns, {"role": "user", "content": question}], tokenizer))
    before = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in shown)
    return tokenizer.encode_document(f"{before}Question: {question}\nAnswer:")


@register
class Algebra(Mathematics):
    """Algebra for grades 4 to 12 from templates that training texts never use, as many problems of each kind."""

    name = "algebra"
    settings = AlgebraSettings

    def problems(self, settings: AlgebraSettings) -> tuple[list[MathProblem], list[MathProblem], Any]:
        """Made by code; the answered ones are from the templates of training."""
        low, high = settings.grades
        within = [kind for kind in kinds() if low <= kind.grade <= high]
        asked, known = [], set()
        for kind in within:
            for index in range(EACH):
                rng = random.Random(f"{SEED} {kind.name} {index} {settings.held_out}")
                problem = made(rng, settings.held_out, kind=kind.name)
                if problem.question not in known:
                    known.add(problem.question)
                    name = f"{kind.name} {index}"
                    asked.append(
                        MathProblem(name, f"grade {kind.grade}", problem.question, problem.working, problem.answer)
                    )
        shown = [made(random.Random(f"shot {n}"), False, settings.grades) for n in range(16)]
        answered = [MathProblem("", "", each.question, each.working, each.answer) for each in shown]
        if settings.limit is not None:
            asked = sorted(asked, key=lambda each: hash_json(each.question))[: settings.limit]
        return asked, answered, hash_json([[each.question, each.answer] for each in asked])


class PackProblems(Mathematics):
    """Problems of a pack. Answered ones come from its training part, where it has one; else they are rows of it, the
    first by their hash, that are then not asked."""

    pack: str
    train: str | None = None
    shots = 4

    def rows_of(self, split: str) -> list[Row]:
        """The rows of a split that count here, by their hash."""
        return sorted(open_pack(self.pack, split), key=hash_json)

    @abc.abstractmethod
    def problem(self, row: Row, number_: int) -> MathProblem:
        """A row as a problem."""

    def texts(self, settings: MathematicsSettings) -> Iterable[str]:
        """The questions."""
        return (self.problem(row, n).question for n, row in enumerate(self.rows_of("test")))

    def problems(self, settings: MathematicsSettings) -> tuple[list[MathProblem], list[MathProblem], Any]:
        """The pack's."""
        rows = [self.problem(row, n) for n, row in enumerate(self.rows_of("test"))]
        shots = self.shots if settings.shots is None else settings.shots
        if self.train:
            answered = [self.problem(row, n) for n, row in enumerate(self.rows_of(self.train)[: max(shots, 16)])]
        else:
            answered, rows = rows[:shots], rows[shots:]
        rows = rows[: settings.limit]
        return (
            rows,
            answered,
            {"pack": find_pack(self.pack).version, "items": hash_json([each.question for each in rows])},
        )


@register
class Gsm8k(PackProblems):
    """GSM8K (Cobbe et al. 2021), five answered problems of its training part before each."""

    name, pack, train, shots = "gsm8k", "gsm8k", "train", 5

    def problem(self, row: Row, number_: int) -> MathProblem:
        """The answer stands behind ####."""
        answer = row["answer"].rpartition("####")[2].strip()
        return MathProblem(f"{number_}", self.name, row["question"], row["answer"], answer)


@register
class Svamp(PackProblems):
    """SVAMP (Patel et al. 2021), by type."""

    name, pack = "svamp", "svamp"

    def problem(self, row: Row, number_: int) -> MathProblem:
        """A story and a question."""
        question = f"{row['Body'].rstrip('. ')}. {row['Question']}"
        answer = _whole(row["Answer"])
        equation = re.sub(r"\.0\b", "", row["Equation"])
        return MathProblem(row["ID"], row["Type"], question, f"{equation} = {answer}. The answer is {answer}.", answer)


@register
class Asdiv(PackProblems):
    """ASDiv (Miao et al. 2020), by grade."""

    name, pack = "asdiv", "asdiv"

    def problem(self, row: Row, number_: int) -> MathProblem:
        """The unit of an answer stands in brackets."""
        answer = row["Answer"].partition("(")[0].strip() or row["Answer"]
        question = f"{row['Body']} {row['Question']}"
        return MathProblem(
            row["ID"], f"grade {row['Grade']}", question, f"{row['Formula']}. The answer is {answer}.", answer
        )


@register
class Mawps(PackProblems):
    """MAWPS (Koncel-Kedziorski et al. 2016)."""

    name, pack = "mawps", "mawps"

    def problem(self, row: Row, number_: int) -> MathProblem:
        """The text with its numbers in it."""
        answer = _whole(row["Answer"])
        return MathProblem(f"{number_}", self.name, row["text"], f"The answer is {answer}.", answer)


@register
class MathAlgebra(PackProblems):
    r"""The algebra of MATH (Hendrycks et al. 2021): answers in \boxed{…}, compared by SymPy."""

    name, pack, symbolic = "math_algebra", "math", True
    categories: tuple[str, ...] = ("algebra",)

    def rows_of(self, split: str) -> list[Row]:
        """Those of the category."""
        return [row for row in super().rows_of(split) if row["category"] in self.categories]

    def answer_in(self, text: str) -> str:
        """As it is written."""
        return final_answer(text)

    def problem(self, row: Row, number_: int) -> MathProblem:
        """Problem, solution, answer."""
        return MathProblem(
            f"{number_}", row["category"], row["context"], row["chain_of_thought"].replace("\n\n", "\n"), row["answer"]
        )


@register
class Aqua(PackProblems):
    """AQuA-RAT (Ling et al. 2017): five options, of which the letter is wanted."""

    name, pack = "aqua", "aqua"

    def answer_in(self, text: str) -> str:
        """The letter."""
        said = re.findall(r"answer(?: is)?:?\s*\(?([A-E])\b", text, re.IGNORECASE) or re.findall(r"\b([A-E])\b", text)
        return said[-1].upper() if said else ""

    def problem(self, row: Row, number_: int) -> MathProblem:
        """The options after the question."""
        options = " ".join(f"({option[0]}) {option[2:].strip()}" for option in row["options"])
        worked = f"{' '.join(row['rationale'].split())} The answer is ({row['correct']})."
        return MathProblem(f"{number_}", self.name, f"{row['question']} Options: {options}", worked, row["correct"])


def _whole(value: object) -> str:
    text = str(value)
    return text[:-2] if text.endswith(".0") else text
