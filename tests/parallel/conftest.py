"""Four processes, started once."""

from __future__ import annotations

from typing import Any

import pytest
from bench.ranks import on_ranks

from tests.parallel.on_four import everything


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four processes found out (`on_four`)."""
    return on_ranks(4, everything, str(tmp_path_factory.mktemp("four")))
