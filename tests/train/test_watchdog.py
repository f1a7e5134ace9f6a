"""A hang is told once, with rank, step and operation; work that is only slow as before is not."""

from __future__ import annotations

import threading

from lmforge.train.watchdog import Watchdog


def test_a_hang_is_told_once() -> None:
    told: list[str] = []
    enough = threading.Event()

    def tell(words: str) -> None:
        told.append(words)
        enough.set()

    with Watchdog(3, least=0.08, tell=tell, stacks=lambda: None) as watch:
        for step in range(1, 4):
            watch.doing(step, "reading the batch")
        watch.doing(4, "sum of gradients over ranks")
        assert enough.wait(5)
        threading.Event().wait(0.1)  # it is not told again
    assert len(told) == 1
    assert told[0].startswith("train: rank 3: step 4: sum of gradients over ranks has taken ")


def test_what_usually_takes_long_is_no_hang() -> None:
    told: list[str] = []
    with Watchdog(0, least=0.04, tell=told.append, stacks=lambda: None) as watch:
        watch.longest["saving"] = 1.0
        watch.doing(1, "saving")
        threading.Event().wait(0.12)  # three times `least`, but a tenth of what it took before
    assert not told
