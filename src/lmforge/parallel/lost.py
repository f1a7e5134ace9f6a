"""A process that no longer answers: every other one says which it is, at which step, in which exchange, and ends.

    thread of each process, now and then: in which exchange of which group is the main thread?
    the same one for half the limit ─▶ say so in the launcher's store ─▶ who of the group has not? ─▶ log, end with 1

A stopped or hung process says nothing, so it is the one that is missing; one that is alive, but elsewhere, says where.
One process watches nothing. Nothing is recorded while things go well: the stack itself tells the exchange.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from lmforge.parallel import agree
from lmforge.parallel.mesh import Mesh
from lmforge.progress import format_duration, log

SUSPECTED, TOLD = 0.5, 0.7  # shares of the limit after which a process says that it waits, and who is missing
EXCHANGES = "torch.distributed.distributed_c10d"  # the module of torch's exchanges
PARTICLES = ("wrapper",)  # frames of that module which are no exchange


class Exchange(NamedTuple):
    """What a thread waits in: its frame, the name of the exchange, and the ranks that take part."""

    frame: FrameType
    name: str
    ranks: list[int]


def exchange_of(frame: FrameType | None, world: int) -> Exchange | None:
    """The exchange in whose frame a thread is, if it is in one."""
    while frame is not None:
        name = frame.f_code.co_name
        waits = frame.f_globals.get("__name__") == "lmforge.parallel.data" and name == "wait_for_sum"
        torchs = frame.f_globals.get("__name__") == EXCHANGES and not name.startswith("_")
        if waits or (torchs and name not in PARTICLES):
            group = inspect.getargvalues(frame).locals.get("group")
            try:
                ranks = dist.get_process_group_ranks(group) if group is not None else list(range(world))
            except (RuntimeError, KeyError):  # one that is being made
                ranks = list(range(world))
            return Exchange(frame, "all_reduce" if waits else name, ranks)
        frame = frame.f_back
    return None


class LostRanks:
    """`with LostRanks(mesh, where): …`; `where()` gives the step (from 1) and the operation of this process."""

    def __init__(
        self,
        mesh: Mesh,
        where: Callable[[], tuple[int, str]],
        tell: Callable[[str], None] = log,
        end: Callable[[int], Any] = os._exit,
        store: Callable[[], Store] = agree.launcher_store,
    ) -> None:
        self.mesh, self.where, self.tell, self.end, self.store = mesh, where, tell, end, store
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._followed = threading.get_ident()

    def __enter__(self) -> LostRanks:
        if self.mesh.world > 1:
            self._thread = threading.Thread(target=self._watch, name="lmforge-lost-ranks", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        before: FrameType | None = None
        since = time.monotonic()
        while not self._over.wait(self.mesh.limit / 20):
            now = exchange_of(sys._current_frames().get(self._followed), self.mesh.world)
            if now is None or now.frame is not before:  # holding on to the frame keeps its place from another
                before, since = None if now is None else now.frame, time.monotonic()
            elif time.monotonic() - since > SUSPECTED * self.mesh.limit:
                self._ask(now)
                return

    def _ask(self, now: Exchange) -> None:
        step, operation = self.where()
        report = json.dumps({"step": step, "operation": operation, "exchange": now.name})
        reports: dict[int, dict[str, Any]] | None = None

        def talk() -> None:
            nonlocal reports
            with contextlib.suppress(dist.DistError):
                self.store().set(_key(self.mesh.rank), report)
                self._over.wait((TOLD - SUSPECTED) * self.mesh.limit)
                reports = self._reports()

        talking = threading.Thread(target=talk, daemon=True)  # the store may be in the process that is lost
        talking.start()
        talking.join((TOLD - SUSPECTED + 0.1) * self.mesh.limit)
        self.tell(f"train: rank {self.mesh.rank}: step {step}: {operation}: {self._in_words(now, reports)}")
        self.end(1)

    def _in_words(self, now: Exchange, reports: Mapping[int, Mapping[str, Any]] | None) -> str:
        """Who is missing: of the ranks that take part, or, where those all wait, of others that one of them waits
        for."""
        if reports is None:
            missing, held = [0], " (it holds the store)"
        else:
            held = ""
            missing = [rank for rank in now.ranks if rank not in reports] or [
                rank for rank in range(self.mesh.world) if rank not in reports
            ]
        names = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}" if missing else "no rank"
        waiting = [
            f"; rank {rank} waits in {report['exchange']} (step {report['step']}, {report['operation']})"
            for rank, report in sorted((reports or {}).items())
            if rank != self.mesh.rank and (rank in now.ranks or not missing)
        ]
        return (
            f"{names} missing{held}: {now.name} of ranks {', '.join(map(str, now.ranks))} has waited for "
            f"{format_duration(TOLD * self.mesh.limit)}{''.join(waiting)}; this process ends, and the same command "
            "goes on from the newest checkpoint"
        )

    def _reports(self) -> dict[int, dict[str, Any]]:
        store = self.store()
        there = [rank for rank in range(self.mesh.world) if store.check([_key(rank)])]
        return {rank: json.loads(store.get(_key(rank))) for rank in there}


def _key(rank: int) -> str:
    return f"lmforge/waits/{rank}"
