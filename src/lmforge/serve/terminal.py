"""A model from the command line: continue a text, and listen on a port."""

from __future__ import annotations

import errno
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.generate.decode import Piece, Sampling, stream_text
from lmforge.interrupted import ctrl_c_heeded
from lmforge.progress import log
from lmforge.serve.api import create_app
from lmforge.serve.hosts import ANSWER_ANY, is_local

GRACE_SECONDS = 5  # how long running answers may take to end when the server is told to stop


def generate_text(
    served: LoadedModel, prompt: str, sampling: Sampling, on_text: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Continue `prompt`, read as the beginning of a document; `on_text` gets each piece of the continuation as it is
    certain.

    Returns `{"text": the continuation, "tokens": drawn, "seconds": taken}`. A prompt longer than the context keeps its
    end.
    """
    started = time.perf_counter()
    text, tokens, _ = collect(served, served.document(prompt), sampling, (), on_text)
    return {"text": text, "tokens": tokens, "seconds": round(time.perf_counter() - started, 4)}


def collect(
    served: LoadedModel,
    prompt: list[int],
    sampling: Sampling,
    stop: tuple[str, ...],
    on_text: Callable[[str], None] | None,
) -> tuple[str, int, Piece | None]:
    """Decode a prompt as text: (text, tokens drawn, the last piece); `on_text` gets each piece as it is certain."""
    parts: list[str] = []
    tokens, piece = 0, None
    with ctrl_c_heeded() as check:
        for piece in stream_text(served.model, served.tokenizer, prompt, sampling, stop):
            check()
            tokens += len(piece.drawn)
            parts.append(piece.text)
            if on_text and piece.text:
                on_text(piece.text)
    return "".join(parts), tokens, piece


def serve(served: LoadedModel, host: str, port: int, hosts: Sequence[str] = (), batch_invariant: bool = True) -> None:
    """Answer on `host`:`port` (0: a free one) until Ctrl-C or SIGTERM; names the address on stderr.

    `hosts`: names by which it may be called beside local ones. Without any, one that listens to other machines answers
    to every name.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    listener = _listen(host, port)
    shown = "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    how = f" ({', '.join(served.methods)})" if served.methods else ""
    log(f"serve: {served.name}{how} from {served.directory}")
    log(f"serve: chat page {address}/   OpenAI-compatible API {address}/v1   model '{served.name}'   Ctrl-C stops")
    if not is_local(host):
        hosts = hosts or tuple(ANSWER_ANY)
        log(f"serve: listening on {host or 'every address'}: whoever reaches it may use it, there is no password")
    config = uvicorn.Config(
        create_app(served, hosts, batch_invariant), log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS
    )
    # uvicorn ends on a signal and then raises it again for the handler that was there before; ours makes that a clean
    # end.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    log("serve: stopped")


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65536
        raise InputError(f"--port {port}: not a port; give a number from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except socket.gaierror as error:
        raise InputError(f"--host {host}: not an address ({error.strerror}); give one such as 127.0.0.1") from error
    except PermissionError as error:
        raise InputError(f"--port {port}: not allowed for this user; give one above 1023") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            mend = "give another one (0 takes any free port) or stop what holds it"
            raise InputError(f"--port {port}: already in use on {host}; {mend}") from error
        raise InputError(
            f"--host {host}: cannot listen there ({error.strerror}); give an address of this machine"
        ) from error
