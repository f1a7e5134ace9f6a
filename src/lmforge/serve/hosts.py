"""Who is answered: on this machine's own address, only those who call it by a local name.

A page of any site may point its own name at 127.0.0.1 and have the reader's browser talk to what listens there (DNS
rebinding); the browser then says that name in the Host header. A page may also send requests to other addresses than
its own; the browser then says whose page it is in the Origin header. Both are refused unless the name is local or one
that the user gave (`serve.hosts`, `--host-name`).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmforge.serve.protocol import ApiError

ANSWER_ANY = frozenset({"*"})  # in place of the names: any Host is answered
_READS = ("GET", "HEAD", "OPTIONS")


def is_local(name: str) -> bool:
    """Whether a host name or address always means this machine: localhost and what is below it, 127.0.0.0/8, ::1."""
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """The outermost layer of the server: refuses foreign callers, and gives every refusal OpenAI's shape.

    `hosts`: names that are answered beside local ones; `ANSWER_ANY`: all (the server listens to other machines, and by
    which names they know it is not known here).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.any = app, "*" in hosts
        self.hosts = {name.lower().rstrip(".") for name in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope["method"], headers.get("host"), headers.get("origin"))
        if refused is not None:
            await JSONResponse(refused.body, refused.status)(scope, receive, send)
        else:
            await self.app(scope, receive, in_openais_shape(send))

    def _known(self, name: str | None) -> bool:
        return name is not None and (is_local(name) or name.lower().rstrip(".") in self.hosts)

    def _refused(self, method: str, host: str | None, origin: str | None) -> ApiError | None:
        # a request without Host (HTTP/1.0) comes from no browser
        if not self.any and host is not None and not self._known(name := _host_of(f"//{host}")):
            return ApiError(
                421,
                f"This server does not answer to the host name {name or host!r}; name it in serve.hosts or with "
                "--host-name, or call localhost",
                code="host_not_allowed",
            )
        if method in _READS or origin is None:
            return None
        if origin.lower().partition("://")[2] == (host or "").lower() or self._known(_host_of(origin)):
            return None
        return ApiError(
            403,
            f"Requests from pages of {origin} are not answered; name its host in serve.hosts or with --host-name",
            code="origin_not_allowed",
        )


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def in_openais_shape(send: Send) -> Send:
    """`send`, with an error that a library wrote as plain text turned into OpenAI's JSON."""
    held: list[Message] = []

    async def reshaped(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            kind = Headers(raw=message["headers"]).get("content-type", "")
            if not kind.startswith(("application/json", "text/event-stream")):
                held.append(message)
                return
        if held and message["type"] == "http.response.body":
            if message.get("more_body"):
                held.append(message)
                return
            start, *parts = held
            held.clear()
            words = b"".join(part.get("body", b"") for part in (*parts, message)).decode("utf-8", "replace")
            body = json.dumps(ApiError(start["status"], words or "The request failed").body).encode()
            kept = [(k, v) for k, v in start["headers"] if k.lower() not in (b"content-type", b"content-length")]
            kept += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({**start, "headers": kept})
            message = {"type": "http.response.body", "body": body}
        await send(message)

    return reshaped
