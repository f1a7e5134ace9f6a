"""What a data set has in common does not make its documents copies of each other; real copies still are."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmforge.corpus.overlap.shared import common_runs, own_text
from tests.corpus.overlap.test_duplicates import edited, near, vocabulary


def conversation(*messages: dict[str, Any]) -> Any:
    return {"id": "1", "text": "all", "source": "s", "genre": "unknown", "meta": {"messages": list(messages)}}


def test_the_systems_message_is_not_a_conversations_own() -> None:
    system, user = (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    )
    assert own_text(conversation(system, user, {"role": "assistant", "content": "Hello"})) == "Hi\n\nHello"
    assert own_text(conversation(user)) is None
    assert own_text(conversation(system)) is None
    assert own_text(conversation(system, user, {"role": "assistant", "content": None})) == "Hi\n\n"
    assert own_text({**conversation(), "meta": {}}) is None


@pytest.mark.parametrize(("head", "own"), [(450, 50), (450, 150), (150, 60), (1500, 150)])
def test_a_long_common_head_makes_no_copies(head: int, own: int, tmp_path: Path) -> None:
    rng, pool = random.Random(1), vocabulary(3000)
    shared = rng.choices(pool, k=head)
    texts = [shared + rng.choices(pool, k=own) for _ in range(120)]
    assert len(near(texts, tmp_path).dropped) <= 6  # of 120


@pytest.mark.parametrize("share", [0.03, 0.08])
def test_copies_edited_here_and_there_are_copies_however_many(share: float, tmp_path: Path) -> None:
    rng, pool = random.Random(2), vocabulary(3000)
    text = rng.choices(pool, k=400)
    assert len(near([edited(text, share, pool, rng) for _ in range(120)], tmp_path).dropped) >= 110  # of 120


def test_runs_of_a_large_share_are_common() -> None:
    rows = np.array([[1, 2, 100 + row] for row in range(30)], np.uint32)
    rows[:12, 1] = 9
    assert common_runs(rows, 9).tolist() == [1]
    assert common_runs(rows[:10], 9).tolist() == []
