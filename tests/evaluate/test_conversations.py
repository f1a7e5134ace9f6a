"""What is scored of a conversation is what its document is learned by."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmforge.evaluate.conversations import targets_of
from lmforge.tokens.chat import Rendered


@given(st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=20))
def test_targets_are_the_next_tokens_that_count_and_the_end(tokens: list[tuple[int, bool]]) -> None:
    ids, counted = [token for token, _ in tokens], [counts for _, counts in tokens]
    targets = targets_of(Rendered(ids, counted), 0)
    assert len(targets) == len(ids)
    assert targets[-1] == (0 if counted[-1] else -1)
    assert targets[:-1] == [token if counts else -1 for token, counts in tokens[1:]]
