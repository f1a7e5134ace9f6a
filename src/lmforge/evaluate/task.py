"""What a task is given, what it gives back, and how it shows itself.

    Context (model, tokenizer, recipe, corpus, tokens), settings ──Task.run──▶ Score (value, interval, items, what must
    be alike, a row per item) ──▶ TASK.json ──▶ headline (terminal), card, words and plots (report)

A new task is a subclass of `Task` in a file of its own, and a `register` of it: inside the package the file stands in
`evaluate/tasks/`, and `lmforge.recipe.evaluate.TASK_MODULES` names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeGuard, TypeVar

import torch
from numpy.typing import NDArray

from lmforge.evaluate.documents import DocumentSettings, HeldOut, held_out, read_texts
from lmforge.model.gpt import GPT
from lmforge.recipe import Recipe
from lmforge.recipe.evaluate import TASK_MODULES, TASK_SETTINGS, TaskSettings
from lmforge.registry import Registry
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import Shards

SEED = 0  # of every draw in evaluation; the recipe's seed is the model's, and models of several seeds must compare
Content = Mapping[str, Any]  # of TASK.json, or of one model's score in it
S = TypeVar("S", bound=TaskSettings)


@dataclasses.dataclass(frozen=True)
class Score:
    """A value with its 95% interval, the items it rests on, and what must be alike for another value to compare with
    it.

    `comparison_key`: parts of the fingerprint (the harness adds tokenizer, seed, format and dtype); its part "machine",
    where there is one, says where a speed was measured. `rows`: one dictionary an item. `ratio`: the fields of a row
    whose sums make the value, value = Σ first / Σ second (second "" counts items); `compare` pairs two models' rows by
    it. `clean`: where parts of the texts also stand in training, `clean_value` without those parts, `clean_low`,
    `clean_high`, and `leaked_share`, their share of the bytes. A task that cannot be asked of these texts gives value
    None, 0 items and the reason in `not_applicable`.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    items: int
    higher_is_better: bool
    comparison_key: dict[str, Any]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    ratio: tuple[str, str] | None = None
    clean: dict[str, Any] = dataclasses.field(default_factory=dict)
    not_applicable: str | None = None


def not_applicable(metric: str, reason: str, comparison_key: dict[str, Any], higher_is_better: bool = True) -> Score:
    """The score of a task that cannot be asked here."""
    return Score(metric, None, None, None, 0, higher_is_better, comparison_key, not_applicable=reason)


@dataclasses.dataclass
class Context:
    """What a task may read. One context serves all models of a run in turn: `model` is the present one (None for a
    baseline, which comes last), `scores` what earlier tasks found, by the score's title and model's name, `weights` the
    hash of the present model's. `items_dir`: where answers are noted as items end, for an evaluation to go on from.
    """

    recipe: Recipe
    corpus_dir: Path
    tokens_dir: Path
    tokenizer: Tokenizer
    model: GPT | None = None
    scores: dict[str, dict[str, Score]] = dataclasses.field(default_factory=dict)
    weights: str = ""
    items_dir: Path | None = None
    _held_out: dict[tuple[Any, ...], HeldOut] = dataclasses.field(default_factory=dict)

    @property
    def network(self) -> GPT:
        """The present model."""
        assert self.model is not None, "a baseline has no model"
        return self.model

    @property
    def shards(self) -> Shards:
        """The tokens of the test split."""
        return Shards.open(self.tokens_dir, "test")

    def held_out(self, settings: DocumentSettings) -> HeldOut:
        """The documents that these settings score, with their tokens.

        Raises:
            InputError: corpus and tokens do not belong together, or the settings' file holds no texts.
        """
        key = (settings.data, settings.limit, settings.max_tokens)
        if key not in self._held_out:
            self._held_out[key] = held_out(settings, self.corpus_dir, self.tokens_dir, self.tokenizer)
        return self._held_out[key]


@dataclasses.dataclass(frozen=True)
class Card:
    """One figure at the top of the report: `verdict` are its words in colour, `good` whether they are good news."""

    title: str
    value: float
    note: str = ""
    verdict: str = ""
    good: bool = True


@dataclasses.dataclass(frozen=True)
class ShareMap:
    """Shares (0 to 1) over two things, drawn as cells: a row is (label, shares), one share a column."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[float]]]
    note: str


class Task(Generic[S]):
    """A named way to score. What is below `run` says how its scores show themselves; the defaults suit most tasks.

    `per_model` is False for a baseline: it is run once, after all models. `format` is raised whenever the same model on
    the same texts would come out differently. `opened`: the report shows unfolded what was written. `family`: the suite
    that it belongs to, where it can be asked of any model by itself.
    """

    name: ClassVar[str]
    settings: type[S]
    per_model: ClassVar[bool] = True
    format: ClassVar[int] = 1
    opened: ClassVar[bool] = False
    family: ClassVar[str] = ""

    def run(self, context: Context, settings: S) -> Score:
        """Score the present model."""
        raise NotImplementedError

    def texts(self, settings: S) -> Iterable[str]:
        """What the task asks of a model, where that stands in files or in the task itself: a corpus whose model is
        scored by it must not hold them."""
        data = getattr(settings, "data", None)
        return () if data is None else (text for _, text in read_texts(data))

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """Keys of [evaluate] that stand for settings which are left out."""
        return {"limit": recipe.evaluate.items}

    def settled(self, recipe: Recipe, settings: TaskSettings | None = None) -> S:
        """The settings given (default: none), completed from [evaluate].

        Raises:
            ValidationError: a setting that this task does not take.
        """
        given = settings.model_dump(exclude_none=True) if settings else {"name": self.name}
        return self.settings.model_validate({**self.defaults(recipe), **given})

    def statistic(self, rows: Sequence[Mapping[str, Any]]) -> Callable[[NDArray[Any]], float] | None:
        """The score as a function of which items count (their numbers), where it is no ratio of sums over items:
        `compare` pairs two models' rows by it. None: it cannot be said of items."""
        return None

    def headline(self, score: Content) -> str:
        """A few words for the terminal's table; empty for none."""
        value = score.get("value")
        return f"{score.get('metric', '')} {value:.3f}".strip() if is_number(value) else ""

    def card(self, score: Content, scores: Mapping[str, Content]) -> Card | None:
        """A figure worth a place at the top of the report; `scores` are those of all tasks, by title."""
        return None

    def level(self, score: Content) -> tuple[str, float] | None:
        """A name and a value in bits per byte to draw across the training's curves."""
        return None

    def entropy(self, score: Content) -> float | None:
        """The held-out text's entropy in bits per byte as the model has it, to stand beside the corpus's figures."""
        return None

    def beside(self, score: Content) -> Mapping[str, Any]:
        """Other measures to show beside the value, by name."""
        baselines = score.get("baselines")
        return {**clean_figures(score), **(baselines if isinstance(baselines, dict) else {})}

    def sentences(self, score: Content) -> list[str]:
        """What is to be said under the table of scores."""
        return []

    def maps(self, model: str, score: Content) -> list[ShareMap]:
        """What is to be drawn of one model's score."""
        return []


TASKS: Registry[Task[Any]] = Registry("task", TASK_MODULES)


def register(task: type[Task[Any]]) -> type[Task[Any]]:
    """Make a task known by its name, and its settings to recipes.

    Raises:
        ValueError: another task has that name.
    """
    TASKS.register(task.name, task())
    TASK_SETTINGS.register(task.name, task.settings)
    return task


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a figure out of a file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def clean_figures(score: Content) -> dict[str, Any]:
    """The value without what also stands in training, and how much that is; nothing where it was not looked for."""
    named = {"clean_value": "on unleaked bytes", "leaked_share": "leaked share of the bytes"}
    return {name: score[key] for key, name in named.items() if is_number(score.get(key))}


def in_words(text: str, score: Content) -> str:
    """A headline's figure with its clean one behind it, where there is one."""
    if not is_number(score.get("clean_value")):
        return text
    share = score.get("leaked_share")
    leaked = f", {100 * share:.1f}% leaked" if is_number(share) else ""
    return f"{text} ({score['clean_value']:.3f} on unleaked bytes{leaked})"


def device_of(model: GPT) -> torch.device:
    """Where a model's tensors lie."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
