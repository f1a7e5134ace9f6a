"""Clusters are named as one types them."""

from __future__ import annotations

import pytest

from lmforge.errors import InputError
from lmforge.plan.accelerators import ACCELERATORS, DESCRIPTION, cluster_of


def test_names_and_counts() -> None:
    assert cluster_of("h100x64").devices == 64
    assert cluster_of("a100-40gb").devices == 1
    assert cluster_of("tpu-v5px8").accelerator.name == "tpu-v5p"
    assert cluster_of("description") == DESCRIPTION
    assert 1.2e18 <= DESCRIPTION.flops < 1.2e18 + DESCRIPTION.accelerator.flops
    assert all(0 < each.sustained < 1 and each.fast_link >= each.slow_link for each in ACCELERATORS.values())


@pytest.mark.parametrize("text", ["h101", "h100x", "h100xmany", "h100x0", ""])
def test_what_is_none_is_refused_with_those_that_are(text: str) -> None:
    if text == "h100x":
        assert cluster_of(text).devices == 1
        return
    with pytest.raises(InputError, match=r"^--hardware .*not known; give NAME"):
        cluster_of(text)
