"""Processes are sent the keys that their queries see, and no others."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.model.kernels.banded import kernel, kernel_backward
from lmforge.parallel.context_ring import needed_by, plain_meet, plain_meet_backward
from lmforge.parallel.context_share import Rows
from tests.parallel.shared_rows import documents_of, share_of


@given(st.integers(2, 4), st.integers(8, 50), st.sampled_from([None, 1, 3, 9]), st.booleans())
def test_what_is_sent_is_what_is_seen(size: int, length: int, window: int | None, packed: bool) -> None:
    tokens, documents = torch.zeros(2, length, dtype=torch.long), documents_of(2, length) if packed else None
    views = [Rows(share_of(size, index), tokens, documents) for index in range(size)]
    low = views[0].reach(window)[0]
    for process, rows in enumerate(views):
        seen = {key for row in low for query in rows.index.tolist() for key in range(int(row[query]), query + 1)}
        for source in range(size):
            if source == process:
                continue
            theirs = set(views[source].index.tolist())
            needed = {key for part in needed_by(rows, window, process, source) for key in part}
            assert seen & theirs <= needed <= theirs
            if window is not None and not packed:  # nothing before the earliest that any query of a later piece sees
                assert len(needed) <= 2 * (window - 1) or size == 1


def test_the_ways_with_and_without_the_processor_s_kernel_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, above = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(4))
    mask = torch.where(torch.rand(2, 1, 7, 7, generator=generator) < 0.5, float("-inf"), 0.0)
    mask[..., 0] = 0
    part, log_sum = plain_meet(q, k, v, mask)
    expected = kernel(q, k, v, 0.0, False, attn_mask=mask)
    assert torch.allclose(part, expected[0], atol=1e-5)
    assert torch.allclose(log_sum, expected[1], atol=1e-5)
    gradients = plain_meet_backward(above, q, part, log_sum, k, v, mask)
    wanted = kernel_backward(above, q, k, v, *expected, 0.0, False, attn_mask=mask)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, wanted, strict=True))
