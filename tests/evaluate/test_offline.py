"""Inside, no connection leaves this process; afterwards everything is as it was."""

from __future__ import annotations

import os
import socket

import pytest

from lmforge.errors import LmforgeError
from lmforge.evaluate.offline import offline


def test_connections_are_refused_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    server = socket.create_server(("127.0.0.1", 0))
    with server, offline():
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        with socket.socket() as one, pytest.raises(LmforgeError, match="wanted to connect"):
            one.connect(server.getsockname())
        with pytest.raises(LmforgeError):
            socket.create_connection(server.getsockname(), timeout=1)
        a, b = socket.socketpair()
        a.send(b"x")
        assert b.recv(1) == b"x"
        a.close()
        b.close()
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    with socket.create_server(("127.0.0.1", 0)) as again:
        socket.create_connection(again.getsockname(), timeout=5).close()
