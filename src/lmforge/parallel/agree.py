"""What the processes of a run agree on where one of them works alone: rank 0 decides, the others wait and do the same.

    rank 0:  hours of corpus ─▶ decides ─▶ value ──┐ the launcher's store ┌──▶ rank 0 goes on when all have read it
    others:  wait, without a limit ◀───────────────┘                      └──▶ the same value

A process group gives up on a rank that is not there after minutes, so no rank may sit in one of its operations while
another works alone. The launcher's store (torchrun's, or rank 0's own) has no such limit. A rank that dies ends the
others: torchrun stops them, and where rank 0 holds the store they lose it.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lmforge.errors import LmforgeError

POLL_SECONDS = 5.0  # between two looks whether an answer is there; a signal is noticed as soon
LEAVING_SECONDS = 3.0  # that a failing rank 0 waits for the others to have read why
_numbers = itertools.count()  # of agreements: every rank counts alike, since all take part in all of them


def rank() -> int:
    """This process among those that the launcher started; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process decides, writes files and speaks."""
    return rank() == 0


@cache
def launcher_store() -> Store:
    """The store that the launcher's environment names, opened once in a process. torchrun keeps one store through all
    its restarts: each has keys of its own in it, so that nobody reads what a lost process left."""
    store: Store = next(iter(rendezvous("env://")))[0]
    return PrefixStore(f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _wait(keys: list[str]) -> None:
    """Until all keys are there, without a limit."""
    while True:
        with contextlib.suppress(dist.DistStoreError):  # it is not there yet
            launcher_store().wait(keys, datetime.timedelta(seconds=POLL_SECONDS))
            return


def broadcast_from_main(value: Any = None) -> Any:
    """Rank 0's `value` (what JSON can hold), on every rank; what other ranks give does not matter.

    Every rank has to call it, and none goes on before all have: it is a barrier too, which no time limits.

    Raises:
        LmforgeError: rank 0 failed instead (`failures_told`); says with what.
    """
    if world() == 1:
        return value
    store, key = launcher_store(), f"lmforge/agree/{next(_numbers)}"
    if is_main():
        store.set(key, json.dumps({"value": value}))
        _wait([f"{key}/read/{other}" for other in range(1, world())])
        return value
    _wait([key])
    content = json.loads(store.get(key))
    store.set(f"{key}/read/{rank()}", "")
    if "failed" in content:
        raise LmforgeError(f"rank {rank()} ends, since rank 0 failed: {content['failed']}")
    return content["value"]


def wait_for_main() -> None:
    """Until every rank is here, however long one of them works alone before."""
    broadcast_from_main()


@contextlib.contextmanager
def failures_told() -> Iterator[None]:
    """Around what rank 0 does alone: when it fails, the others, which wait for it, are told and end too."""
    try:
        yield
    except BaseException as error:
        if world() > 1 and is_main():
            store, key = launcher_store(), f"lmforge/agree/{next(_numbers)}"
            with contextlib.suppress(dist.DistError):
                store.set(key, json.dumps({"failed": str(error) or type(error).__name__}))
                store.wait(
                    [f"{key}/read/{other}" for other in range(1, world())],
                    datetime.timedelta(seconds=LEAVING_SECONDS),
                )
        raise


def on_main(work: Callable[[], Any]) -> Any:
    """Rank 0 does `work` alone, however long it takes; every rank gets what it returns (what JSON can hold).

    Raises:
        LmforgeError: on the other ranks, where it failed; rank 0 raises what it raised.
    """
    with failures_told():
        value = work() if is_main() else None
    return broadcast_from_main(value)
