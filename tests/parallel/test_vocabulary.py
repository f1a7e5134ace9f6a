"""Loss, gradients, embedding and logits of a vocabulary that four processes share, unevenly."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("figure", ["loss", "hidden", "weight", "embedding", "logits"])
def test_a_shared_vocabulary_gives_what_a_whole_one_gives(four: list[dict[str, Any]], figure: str) -> None:
    assert max(each["vocabulary"][figure] for each in four) < 1e-5
