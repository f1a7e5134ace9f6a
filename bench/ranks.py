"""A function on several processes of one group, on this machine."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from typing import Any


def _rank(rank: int, world: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...], answers: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        answers.put((rank, work(*arguments), None))
    except BaseException as error:
        import traceback

        traceback.print_exc()
        answers.put((rank, None, repr(error)))
        sys.exit(1)


def on_ranks(world: int, work: Callable[..., Any], *arguments: Any, limit: float = 300.0) -> list[Any]:
    """What `work(*arguments)` returns in each of `world` new processes of one group. They are forked from a server that
    has imported everything once.

    Raises:
        RuntimeError: one failed (its own words), or they took longer than `limit` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "lmforge.train.loop", "lmforge.parallel.mesh_layout"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answers: Any = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, world, port, work, arguments, answers)) for rank in range(world)]
    for process in ranks:
        process.start()
    try:
        results: dict[int, Any] = {}
        for _ in ranks:
            rank, value, failure = answers.get(timeout=limit)
            if failure is not None:
                raise RuntimeError(f"rank {rank}: {failure}")
            results[rank] = value
    finally:
        for process in ranks:
            process.join(2 if len(results) == world else 0.1)
            process.kill()
    return [results[rank] for rank in range(world)]
