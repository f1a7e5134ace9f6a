"""Who is answered: local callers, and those whom the user names."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse

from lmforge.formats.loaded import LoadedModel
from lmforge.serve import terminal
from lmforge.serve.api import create_app
from lmforge.serve.hosts import ANSWER_ANY, Guard, is_local


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "chat.localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_names_of_this_machine_alone_are_local(name: str) -> None:
    assert is_local(name)


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", ""])
def test_other_names_are_not(name: str) -> None:
    assert not is_local(name)


@pytest.mark.parametrize("path", ["/", "/v1/models", "/health", "/nowhere"])
def test_a_foreign_host_is_not_answered(base_url: str, path: str) -> None:
    """DNS rebinding: a page's own name points here."""
    port = base_url.rsplit(":", 1)[1]
    reply = httpx.get(base_url + path, headers={"Host": f"evil.example:{port}"})
    assert reply.status_code == 421
    assert "evil.example" in reply.json()["error"]["message"]
    assert "serve.hosts" in reply.json()["error"]["message"]
    assert httpx.get(base_url + "/health", headers={"Host": f"localhost:{port}"}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example:80", "http://["])
def test_a_page_of_another_site_may_not_ask(base_url: str, origin: str) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    reply = httpx.post(f"{base_url}/v1/completions", json=body, headers={"Origin": origin})
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "origin_not_allowed"
    own = httpx.post(f"{base_url}/v1/completions", json=body, headers={"Origin": base_url})
    assert own.status_code == 200, "the chat page itself"


def ask(hosts: tuple[str, ...], host: str, served: LoadedModel, **headers: str) -> int:
    async def one() -> int:
        transport = httpx.ASGITransport(create_app(served, hosts))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/health", headers={"Host": host, **headers})).status_code

    return asyncio.run(one())


def test_names_that_the_user_gives_are_answered(served: LoadedModel) -> None:
    assert ask((), "box.lan", served) == 421
    assert ask(("Box.lan",), "box.LAN:8000", served) == 200
    assert ask(("box.lan",), "other.lan", served) == 421
    assert ask(tuple(ANSWER_ANY), "other.lan", served) == 200
    assert ask((), "[::1]:8000", served) == 200
    assert ask((), "[", served) == 421


@pytest.mark.parametrize(
    ("host", "hosts", "expected"),
    [("127.0.0.1", (), ()), ("localhost", ("a",), ("a",)), ("0.0.0.0", (), ("*",)), ("0.0.0.0", ("a",), ("a",))],
)
def test_the_address_listened_on_decides(
    served: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    hosts: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    given: list[tuple[tuple[str, ...], bool]] = []

    class Server:
        def __init__(self, _: object) -> None: ...

        def run(self, sockets: object) -> None: ...

    def app(_: object, hosts: tuple[str, ...], batch_invariant: bool) -> object:
        given.append((hosts, batch_invariant))
        return object()

    monkeypatch.setattr(terminal, "create_app", app)
    monkeypatch.setattr(terminal.uvicorn, "Server", Server)
    terminal.serve(served, host, 0, hosts, batch_invariant=False)
    assert given == [(expected, False)]


def test_a_librarys_plain_error_gets_openais_shape() -> None:
    plain = Guard(PlainTextResponse("Too much", 413, headers={"Retry-After": "9"}), ())

    async def one() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(plain), base_url="http://localhost") as client:
            return await client.get("/")

    reply = asyncio.run(one())
    assert reply.status_code == 413
    assert reply.json()["error"]["message"] == "Too much"
    assert reply.headers["retry-after"] == "9"
