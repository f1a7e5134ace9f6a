"""What the sections of a recipe are made of: bounded numbers, sizes, schedules, and a section that refuses unknown
keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(gt=0)]


def _in_bytes(value: Any) -> Any:
    """ "2GiB", "500 MB", "1.5e9" → bytes; anything else as it is, for pydantic to judge."""
    found = (
        re.fullmatch(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*(?:([kKMGT])(i?)B?|B)?\s*", value)
        if isinstance(value, str)
        else None
    )
    if not found:
        return value
    unit = 0 if found[2] is None else " kMGT".index(found[2].replace("K", "k"))
    return round(float(found[1]) * (1024 if found[3] else 1000) ** unit)


Size = Annotated[int, Field(gt=0), BeforeValidator(_in_bytes)]
Level = Annotated[int, Field(ge=1, le=5)]
# A number, or a curriculum: [share of training, weight] pairs, each weight from its share on.
Curriculum = Weight | tuple[tuple[Share, Annotated[float, Field(ge=0)]], ...]


def check_weight(weight: Curriculum) -> None:
    """Refuse a curriculum that is out of order or gives nothing."""
    if isinstance(weight, tuple) and not (in_order(weight) and any(value for _, value in weight)):
        raise ValueError(
            "a weight that changes is a list of [share of training, weight] pairs: the first share 0, each later "
            "one larger, some weight above 0; for example [[0, 1.0], [0.8, 0.2]]"
        )


def in_order(schedule: Sequence[tuple[float, float]]) -> bool:
    shares = [share for share, _ in schedule]
    return bool(shares) and shares[0] == 0 and shares == sorted(set(shares))


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values are checked, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
