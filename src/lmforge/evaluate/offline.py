"""No connection while scores are made: libraries are told so, and a socket that is opened all the same is refused."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from lmforge.errors import LmforgeError

SWITCHES = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Inside, a connection to anywhere but this machine's own sockets raises an LmforgeError, and libraries of the
    Hugging Face Hub look into their caches alone."""
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(SWITCHES)
    settings = [
        (module, name, getattr(module, name))
        for module, name in (
            (sys.modules.get("datasets.config"), "HF_HUB_OFFLINE"),
            (sys.modules.get("huggingface_hub.constants"), "HF_HUB_OFFLINE"),
        )
        if module is not None and hasattr(module, name)
    ]
    for module, name, _ in settings:
        setattr(module, name, True)
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refused(self: socket.socket, address: Any) -> Any:
        if self.family not in (socket.AF_INET, socket.AF_INET6):
            return connect(self, address)
        raise LmforgeError(f"evaluation wanted to connect to {address}: a task reads what no pack holds; report it")

    socket.socket.connect = refused  # type: ignore[method-assign,assignment]
    socket.socket.connect_ex = refused  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        socket.socket.connect, socket.socket.connect_ex = connect, connect_ex  # type: ignore[method-assign]
        for module, name, value in settings:
            setattr(module, name, value)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
