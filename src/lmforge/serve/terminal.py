"""A model at the terminal: continue a text, talk, and listen on a port."""

from __future__ import annotations

import dataclasses
import errno
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.generate.decode import Piece, Sampling, stream_text
from lmforge.progress import log
from lmforge.serve.api import create_app
from lmforge.serve.hosts import ANSWER_ANY, is_local

Messages = list[dict[str, str]]
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
    text, tokens, _ = _collect(served, served.document(prompt), sampling, (), on_text)
    return {"text": text, "tokens": tokens, "seconds": round(time.perf_counter() - started, 4)}


def _collect(
    served: LoadedModel,
    prompt: list[int],
    sampling: Sampling,
    stop: tuple[str, ...],
    on_text: Callable[[str], None] | None,
) -> tuple[str, int, Piece | None]:
    parts: list[str] = []
    tokens, piece = 0, None
    for piece in stream_text(served.model, served.tokenizer, prompt, sampling, stop):
        tokens += len(piece.drawn)
        parts.append(piece.text)
        if on_text and piece.text:
            on_text(piece.text)
    return "".join(parts), tokens, piece


def chat(served: LoadedModel, sampling: Sampling) -> None:
    """Talk until /quit or the end of the input; /reset forgets. Answers go to stdout, everything else to stderr.

    The oldest turns are dropped when the conversation outgrows the context. Ctrl-C ends the answer; at the prompt, it
    leaves.
    """
    terminal = sys.stdin.isatty()
    if terminal:
        log(f"{served.name}: {served.context} tokens of context; /reset forgets, /quit leaves")
    history: Messages = []
    while (line := _read_line(terminal)) is not None:
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            history = []
            log("forgotten")
        elif line:
            history = _answer(served, [*history, {"role": "user", "content": line}], sampling)


def _read_line(terminal: bool) -> str | None:
    """The next line without surrounding space; None at the end of the input or on Ctrl-C."""
    if terminal:
        print("> ", end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        log("")
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"stdin: not UTF-8 text ({error}); convert it first") from error
    return line.strip() if line else None


def _answer(served: LoadedModel, history: Messages, sampling: Sampling) -> Messages:
    """Print the answer to the last turn and return the history with it."""
    history, prompt = trim(served, history, sampling.max_tokens)
    parts: list[str] = []

    def show(text: str) -> None:
        shown = text if parts else text.lstrip()
        if shown:
            parts.append(shown)
            print(shown, end="", flush=True)

    try:
        _collect(served, prompt, dataclasses.replace(sampling, stop_ids=served.stop_ids), served.chat_stop, show)
    except KeyboardInterrupt:
        log(" (stopped)")
    print(flush=True)
    return [*history, {"role": "assistant", "content": "".join(parts).strip()}]


def trim(served: LoadedModel, history: Messages, answer: int) -> tuple[Messages, list[int]]:
    """Drop the oldest turns until the conversation leaves room for `answer` tokens (at most half the context), and
    render it.

    A last turn that is too long alone stays whole; decoding keeps its end, and a note says so.
    """
    room = served.context - min(answer, served.context // 2)
    while len(prompt := served.conversation(history)) > room and len(history) > 1:
        # Question and answer go together, so that the history begins with a question.
        history = history[2:] if len(history) > 2 else history[1:]
    if len(prompt) > room:
        log(
            f"(long message: {len(prompt)} tokens; the model reads the last {served.context - 1} and forgets as it "
            "writes)"
        )
    return history, prompt


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
