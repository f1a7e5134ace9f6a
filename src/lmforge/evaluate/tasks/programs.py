"""From a description in words to a program that works: procedural tasks with hidden tests, HumanEval, MBPP.

    description ─▶ the model writes, once or several times ─▶ sandbox: hidden tests ─▶ pass@k, a row per task

Programs are run in the sandbox (`evaluate.sandbox`), and what it keeps them from is part of the score's file. Where the
words name an algorithm, a program has to pass its tests and to be that algorithm as far as can be seen
(`evaluate.named`).
"""

from __future__ import annotations

import abc
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator

from lmforge.corpus.sources.algorithms import Algorithm, AlgorithmicTask, algorithms, cases, worded
from lmforge.evaluate import named
from lmforge.evaluate.packs import Row, find_pack, open_pack
from lmforge.evaluate.sandbox import isolation
from lmforge.evaluate.solutions import alike, called, pass_figures, passes_assertions, program_in, results_of
from lmforge.evaluate.task import SEED, Content, Context, Score, Task, is_number, register
from lmforge.evaluate.writing import Writing, write
from lmforge.progress import Bar
from lmforge.recipe import Recipe
from lmforge.recipe.evaluate import TaskSettings
from lmforge.recipe.types import Positive
from lmforge.record import hash_json
from lmforge.tokens.chat import has_chat_tokens, render_chat

FORMAT = 1
HIDDEN = 20  # lists of arguments that a program is called with
SECTION = "\nQuestion:"


class ProgramSettings(TaskSettings):
    """Settings of tasks that ask for programs; `limit` counts tasks, chosen by their hash."""

    samples: Positive = 1  # programs a task; with one, the likeliest token is taken each time
    k: tuple[Positive, ...] = (1,)  # of pass@k; the first is the value
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.8  # of several samples
    new_tokens: Positive = 384  # that a program may have

    @field_validator("k")
    @classmethod
    def _fits(cls, k: tuple[int, ...], info: Any) -> tuple[int, ...]:
        if not k or max(k) > info.data.get("samples", 1):
            raise ValueError(f"pass@{max(k, default=0)} needs as many samples; raise samples or lower k")
        return k


class AlgorithmSettings(ProgramSettings):
    """Settings of `algorithms`."""

    families: tuple[str, ...] | None = None  # sorting, searching, sequences …; default: all
    held_out: bool = True  # phrasings that training texts never use; false: those they use


class Programs(Task[Any]):
    """What tasks that ask for programs have in common."""

    family = "programs"

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """Every task."""
        return {}

    def headline(self, score: Content) -> str:
        """pass@1 in percent."""
        value = score.get("value")
        return f"{self.name} {100 * value:.0f}% ({score.get('items')} tasks)" if is_number(value) else ""

    def beside(self, score: Content) -> Mapping[str, Any]:
        """Further k."""
        passed = score.get("pass_at_k")
        return {f"pass@{k}": figure["value"] for k, figure in passed.items()} if isinstance(passed, dict) else {}

    def sentences(self, score: Content) -> list[str]:
        """Where programs ran."""
        words = score.get("isolation")
        return [f"Programs ran in a sandbox: {words}."] if isinstance(words, str) else []


def _writing(settings: ProgramSettings, stop: tuple[str, ...]) -> Writing:
    temperature = settings.temperature if settings.samples > 1 else 0.0
    return Writing(settings.new_tokens, stop, temperature, settings.samples, seed=SEED)


def _score(rows: list[dict[str, Any]], settings: ProgramSettings, key: dict[str, Any]) -> Score:
    """pass@k of rows with `passed`, the number of right samples."""
    counts = [(settings.samples, row["passed"]) for row in rows]
    figures = {k: pass_figures(counts, k, SEED) for k in settings.k}
    value, interval = figures[settings.k[0]]
    low, high = interval or (None, None)
    own: dict[str, list[int]] = {}
    for row in rows:
        own.setdefault(row["part"], []).append(row["passed"])
    extra = {
        "pass_at_k": {
            str(k): {"value": each[0], "low": (each[1] or (None,))[0], "high": (each[1] or (None, None))[1]}
            for k, each in figures.items()
        },
        "samples": settings.samples,
        "isolation": isolation().words,
        "not_isolated": list(isolation().open_doors),
        "parts": {
            part: {"value": sum(passed) / len(passed) / settings.samples, "items": len(passed)}
            for part, passed in own.items()
        },
    }
    ratio = ("correct", "")
    for row in rows:
        row["correct"] = row["passed"] / settings.samples
    return Score(f"pass@{settings.k[0]}", value, low, high, len(rows), True, key, extra, rows, ratio)


def _key(settings: ProgramSettings, prompts: Sequence[Sequence[int]], tests: Any) -> dict[str, Any]:
    return {
        "data": hash_json(tests),
        "prompts": hash_json([list(prompt) for prompt in prompts]),
        "decoding": settings.model_dump(mode="json", include={"samples", "temperature", "new_tokens"}),
        "code": FORMAT,
    }


def _prompt(context: Context, question: str) -> list[int]:
    """A question as the model was taught to be asked: in a chat, else as the procedural texts put it."""
    tokenizer = context.tokenizer
    if has_chat_tokens(tokenizer):
        return list(render_chat([{"role": "user", "content": question}], tokenizer))
    return tokenizer.encode_document(f"Question: {question}\nAnswer:")


def _tested(texts: Sequence[Sequence[str]], test: Any, title: str) -> list[list[str]]:
    """For each text why it fails, "" where it passes; equal programs for one task are run once."""
    whys: list[list[str]] = []
    with Bar("evaluate", sum(map(len, texts)), title) as bar:
        for number, samples in enumerate(texts):
            known: dict[str, str] = {}
            for text in samples:
                if text not in known:
                    known[text] = test(number, text)
                bar.step(1)
            whys.append([known[text] for text in samples])
    return whys


@register
class Algorithms(Programs):
    """Ninety algorithmic tasks, each in words that training texts never use; `limit` counts phrasings."""

    name = "algorithms"
    settings = AlgorithmSettings

    def run(self, context: Context, settings: AlgorithmSettings) -> Score:
        """Ask for a program for every phrasing and call it with hidden arguments."""
        asked = _phrased(settings)
        prompts = [_prompt(context, each.question) for each in asked]
        texts = write(context, prompts, _writing(settings, (SECTION,)), "programs")
        whys = _tested(
            texts, lambda number, text: algorithm_fault(asked[number].algorithm, text, asked[number].name), "tests"
        )
        rows = [
            {
                "id": f"{each.algorithm.name}: {each.phrasing}",
                "part": each.algorithm.family,
                "prompt": each.question,
                "completion": samples[0],
                "answer": each.solution,
                "passed": why.count(""),
                "why": why[0],
            }
            for each, samples, why in zip(asked, texts, whys, strict=True)
        ]
        tests = [[each.question, each.algorithm.arguments, each.algorithm.solution] for each in asked]
        return _score(rows, settings, _key(settings, prompts, [tests, HIDDEN]))


def _phrased(settings: AlgorithmSettings) -> list[AlgorithmicTask]:
    """Every phrasing asked for, each in a sentence and with a function's name drawn by the phrasing itself."""
    chosen: list[AlgorithmicTask] = []
    for algorithm in algorithms().values():
        if settings.families is None or algorithm.family in settings.families:
            for phrasing in algorithm.held_out if settings.held_out else algorithm.train:
                chosen.append(worded(algorithm, phrasing, random.Random(f"{SEED} {phrasing}")))
    chosen.sort(key=lambda each: hash_json(each.question))
    return chosen[: settings.limit]


def algorithm_fault(algorithm: Algorithm, text: str, name: str) -> str:
    """Why the program in a text does not do what the task asks; "" where it does."""
    source = program_in(text)
    given = cases(algorithm.name, SEED, HIDDEN)
    wanted = called(algorithm.reference(name), name, given)
    results, outcome = results_of(source, name, given)
    wrong = next((n for n, result in enumerate(results) if not alike(result, wanted[n])), None)
    if wrong is not None:
        said = outcome.stderr.strip() or f"{name}{tuple(given[wrong])!r}: {results[wrong]!r}, not {wanted[wrong]!r}"
        return f"{outcome.status}: {said[:300]}" if outcome.status != "ok" else said[:300]
    return named.fault(algorithm.check, source, name) if algorithm.check else ""


class PackPrograms(Programs, abc.ABC):
    """A benchmark of programs with tests of its own."""

    settings = ProgramSettings
    pack: str
    split = "test"
    stop: tuple[str, ...]

    def rows_of(self, limit: int | None) -> list[Row]:
        """The pack's rows, or so many of them by their hash."""
        rows = open_pack(self.pack, self.split)
        return rows if limit is None else sorted(rows, key=hash_json)[:limit]

    def texts(self, settings: ProgramSettings) -> Iterable[str]:
        """What is asked, and the solutions."""
        for row in self.rows_of(settings.limit):
            yield self.question(row)
            yield self.solution(row)

    @abc.abstractmethod
    def question(self, row: Row) -> str:
        """What the model is shown."""

    @abc.abstractmethod
    def solution(self, row: Row) -> str:
        """The benchmark's own."""

    @abc.abstractmethod
    def program(self, row: Row, text: str) -> str:
        """The program that a text makes."""

    @abc.abstractmethod
    def tests(self, row: Row) -> str:
        """What it has to come through."""

    def run(self, context: Context, settings: ProgramSettings) -> Score:
        """Ask for every program and run its tests."""
        rows = self.rows_of(settings.limit)
        prompts = [context.tokenizer.encode_document(self.question(row)) for row in rows]
        texts = write(context, prompts, _writing(settings, self.stop), self.name)

        def why(number: int, text: str) -> str:
            passed, reason = passes_assertions(self.program(rows[number], text), self.tests(rows[number]))
            return "" if passed else reason or "its tests did not come to their end"

        found = [
            {
                "id": str(row["task_id"]),
                "part": self.name,
                "prompt": self.question(row),
                "completion": samples[0],
                "answer": self.solution(row),
                "passed": whys.count(""),
                "why": whys[0],
            }
            for row, samples, whys in zip(rows, texts, _tested(texts, why, "tests"), strict=True)
        ]
        version = {"pack": find_pack(self.pack).version, "split": self.split, "limit": settings.limit}
        return _score(found, settings, _key(settings, prompts, version))


@register
class HumanEval(PackPrograms):
    """HumanEval (Chen et al. 2021): a signature with its docstring is completed; stops as in its section 3.2."""

    name, pack = "humaneval", "humaneval"
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

    def question(self, row: Row) -> str:
        """The head of a file."""
        return str(row["prompt"])

    def solution(self, row: Row) -> str:
        """The body."""
        return str(row["canonical_solution"])

    def program(self, row: Row, text: str) -> str:
        """Head and body."""
        return str(row["prompt"]) + text

    def tests(self, row: Row) -> str:
        """The function `check`, called."""
        return f"{row['test']}\n\ncheck({row['entry_point']})"


@register
class Mbpp(PackPrograms):
    """MBPP (Austin et al. 2021): three answered problems of its prompt part, then the problem with its three tests."""

    name, pack = "mbpp", "mbpp"
    stop = ("[DONE]",)
    shots = (2, 3, 4)  # the paper's

    def question(self, row: Row) -> str:
        """The prompt of the paper's section 4, three-shot."""
        known = {each["task_id"]: each for each in open_pack(self.pack, "prompt")}
        answered = "".join(f"{_posed(known[n])}{known[n]['code']}\n[DONE]\n\n" for n in self.shots if n in known)
        return answered + _posed(row)

    def solution(self, row: Row) -> str:
        """The program."""
        return str(row["code"])

    def program(self, row: Row, text: str) -> str:
        """The text as it is, or its block of code."""
        return program_in(text) if "```" in text else text

    def tests(self, row: Row) -> str:
        """The set-up and the assertions."""
        return "\n".join([str(row.get("test_setup_code", "")), *row["test_list"]])


def _posed(row: Row) -> str:
    tests = "\n".join(row["test_list"])
    text = f"You are an expert Python programmer, and here is your task: {row['text']}"
    return f"{text} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
