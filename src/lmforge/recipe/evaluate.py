"""The `[evaluate]` section: which tasks score a model, each with settings of its own.

    [evaluate]
    tasks = ["bits_per_byte", "kneser_ney"]      names alone

    [[evaluate.tasks]]                           or each with settings
    name = "passkey"
    limit = 200

A task registers its settings where it is written (`lmforge.evaluate.tasks`); a recipe's are checked when it is read.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, PlainValidator, field_validator

from lmforge.recipe.types import Positive, Section
from lmforge.registry import Registry, Selected

# where the package's own tasks register themselves: one line a family
TASK_MODULES = (
    "lmforge.evaluate.tasks.language",
    "lmforge.evaluate.tasks.baseline",
    "lmforge.evaluate.tasks.code",
    "lmforge.evaluate.tasks.speed",
    "lmforge.evaluate.tasks.answers",
    "lmforge.evaluate.tasks.passkey",
    "lmforge.evaluate.tasks.few_shot_images",
    "lmforge.evaluate.tasks.programs",
    "lmforge.evaluate.tasks.mathematics",
    "lmforge.evaluate.tasks.standard",
    "lmforge.evaluate.tasks.squad",
)
TASK_SETTINGS: Registry[type[BaseModel]] = Registry("task", TASK_MODULES)


class TaskSettings(Section):
    """What every task may be told. A task's own settings are a subclass with further keys, `data` (a file to score
    instead of the test split) and `shots` (answered examples before each question) among them where it takes them."""

    name: str  # of the task
    # what its score is called; default: the task's name
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] | None = None
    limit: Positive | None = None  # most items scored; default: evaluate.items where a model has to write

    @property
    def title(self) -> str:
        """What the score's files are called."""
        return self.label or self.name


class DataSettings(TaskSettings):
    """Settings of a task that can score a file of the user's."""

    data: Path | None = None  # a file to score; default: the test split


_SELECTED = Selected(TASK_SETTINGS, "name")


def _task(value: Any) -> Any:
    """A task's name as it is, a table as the settings of its task."""
    if isinstance(value, str):
        _SELECTED.validate({"name": value})
        return value
    return _SELECTED.validate(value)


class Evaluate(Section):
    """Model → scores."""

    # names, or tables of a name and settings
    tasks: tuple[Annotated[Any, PlainValidator(_task)], ...] = (
        "bits_per_byte",
        "completions_parse",
        "generation_speed",
        "kneser_ney",
    )
    items: Positive = 64  # items of each task in which a model writes, where it states no limit
    max_tokens: Positive | None = None  # tokens of the held-out text scored; default: all

    @field_validator("tasks")
    @classmethod
    def _named_apart(cls, tasks: tuple[str | TaskSettings, ...]) -> tuple[str | TaskSettings, ...]:
        tasks = tuple(dict.fromkeys(tasks))
        named = Counter(task if isinstance(task, str) else task.title for task in tasks)
        if twice := [title for title, times in named.items() if times > 1]:
            raise ValueError(f"two tasks are called {twice[0]!r}; give one of them a label of its own")
        return tasks

    @property
    def chosen(self) -> tuple[TaskSettings, ...]:
        """The settings of each task, in order."""
        made = (_SELECTED.validate({"name": task}) if isinstance(task, str) else task for task in self.tasks)
        return tuple(settings for settings in made if isinstance(settings, TaskSettings))
