"""Each exchange and its gradient, beside the whole computed on one process."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("name", ["all_tokens", "own_tokens", "alike", "summed", "spread_out", "taken"])
def test_values_and_gradients_are_those_of_the_whole(four: list[dict[str, Any]], name: str) -> None:
    assert max(each["exchange"][name] for each in four) < 1e-5
