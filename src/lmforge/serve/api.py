"""An OpenAI-compatible server for one model, with a chat page at /.

    app = create_app(load_any(Path("runs/laptop")))

Every answer is a stream of chunks; an unstreamed answer is the same chunks folded into one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from sse_starlette.sse import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.generate.decode import Sampling
from lmforge.progress import log
from lmforge.serve.engine import QUEUE_ROWS, Engine, Overloaded, Part, Row
from lmforge.serve.hosts import Guard
from lmforge.serve.protocol import ApiError, Chat, ChatRequest, CompletionRequest, Completions, Parameters

COMPLETION_TOKENS = 16  # OpenAI's default for completions
CHAT_TOKENS = 256  # default for chat, where OpenAI's is the rest of the context
MAX_BODY_BYTES = 8 << 20
READ = ["GET", "HEAD"]
PAGE = Path(__file__).parent / "page" / "index.html"
_NO_OTHER_HOSTS = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A request made ready: the rows to continue, the text that each repeats first, and how the answer is written."""

    rows: list[Row]
    echoes: list[str]
    prompt_tokens: int
    shapes: Completions | Chat


def plan_completion(served: LoadedModel, request: CompletionRequest) -> Plan:
    """The rows of a completion request: every prompt `n` times.

    A text is read as the beginning of a document (the end-of-text token stands before it, unseen and uncounted); token
    ids are taken exactly as given.

    Raises:
        ApiError: 400, naming the parameter.
    """
    request.refuse_unsupported()
    prompts, choices = request.prompts, request.n or 1
    if not prompts:
        raise ApiError(400, "'prompt' is an empty list; give at least one prompt", "prompt")
    if len(prompts) * choices > QUEUE_ROWS:
        raise ApiError(
            400, f"{len(prompts)} prompts times n={choices} is more than the {QUEUE_ROWS} answers of one request", "n"
        )
    rows, echoes, counted = [], [], 0
    for prompt in prompts:
        ids = served.document(prompt) if isinstance(prompt, str) else prompt
        if not ids or not all(0 <= token < served.tokenizer.vocab_size for token in ids):
            raise ApiError(
                400, f"'prompt': give token ids, at least one, from 0 to {served.tokenizer.vocab_size - 1}", "prompt"
            )
        hidden = 1 if isinstance(prompt, str) else 0
        counted += len(ids) - hidden
        room = _room(served, len(ids), request.max_tokens, COMPLETION_TOKENS, "prompt")
        echo = served.tokenizer.decode(ids[hidden:]) if request.echo else ""
        scored = hidden if request.echo and request.logprobs is not None else None
        for choice in range(choices):
            rows.append(
                Row(tuple(ids), _sampling(served, request, room, choice, request.logprobs or 0), request.stops, scored)
            )
            echoes.append(echo)
    return Plan(rows, echoes, counted, Completions(served.tokenizer, request.logprobs))


def plan_chat(served: LoadedModel, request: ChatRequest) -> Plan:
    """The rows of a chat request: the rendered conversation `n` times.

    Raises:
        ApiError: 400, naming the parameter.
    """
    request.refuse_unsupported()
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "'top_logprobs' is only allowed when 'logprobs' is true", "top_logprobs")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, "give 'max_tokens' or 'max_completion_tokens', not both", "max_tokens")
    ids = served.conversation([{"role": message.role, "content": message.text} for message in request.messages])
    wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    room = _room(served, len(ids), wanted, CHAT_TOKENS, "messages")
    stops, top = (*served.chat_stop, *request.stops), request.top_logprobs or 0
    rows = [Row(tuple(ids), _sampling(served, request, room, choice, top), stops) for choice in range(request.n or 1)]
    # only in a transcript does a blank part the speaker from the words, and an answer that goes on keeps its own
    trims = bool(served.chat_stop) and request.messages[-1].role != "assistant"
    return Plan(rows, [""] * len(rows), len(ids), Chat(served.tokenizer, bool(request.logprobs), trims))


def _room(served: LoadedModel, prompt: int, wanted: int | None, default: int, param: str) -> int:
    """How many tokens may be drawn after a prompt of `prompt` tokens; what does not fit the context is an error, as at
    OpenAI."""
    free = served.context - prompt
    if free < (1 if wanted is None else wanted):
        asked = f" and {wanted} for the answer" if wanted is not None else ", which leaves no room for an answer"
        raise ApiError(
            400,
            f"This model's maximum context length is {served.context} tokens, however you requested {prompt} in the "
            "prompt"
            f"{asked}. Please reduce the length of the prompt or of the answer.",
            param,
            "context_length_exceeded",
        )
    return min(default, free) if wanted is None else wanted


def _sampling(served: LoadedModel, request: Parameters, room: int, choice: int, top_logprobs: int) -> Sampling:
    return Sampling(
        max_tokens=room,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=max(request.top_k or 0, 0),
        top_p=1.0 if request.top_p is None else max(request.top_p, 1e-6),  # 0 means: the likeliest token alone
        seed=None if request.seed is None else request.seed + choice,
        stop_ids=served.stop_ids,
        top_logprobs=top_logprobs,
    )


async def chunks(engine: Engine, plan: Plan, model: str, fingerprint: str) -> AsyncGenerator[dict[str, Any], None]:
    """Run a plan: its chunks in OpenAI's shape, the last one with `usage` and no choice. Leaving early cancels the
    rows.

    The first item is empty: by then the engine has accepted the rows.

    Raises:
        ApiError: 503 the queue is full, 500 the engine failed.
    """
    common = {
        "id": f"{plan.shapes.prefix}-{uuid.uuid4().hex}",
        "object": plan.shapes.chunk,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
    }
    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Part | Exception]]()

    def listen(index: int, event: Part | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

    try:
        ticket = engine.submit(plan.rows, listen)
    except Overloaded as error:
        raise _as_api_error(error) from error
    try:
        yield {}
        drawn, unfinished = [0] * len(plan.rows), len(plan.rows)
        for index, row in enumerate(plan.rows):
            if (opening := plan.shapes.open(index)) is not None:
                yield {**common, "choices": [opening]}
            if plan.echoes[index] and row.score_from is None:
                yield {**common, "choices": [plan.shapes.choice(index, Part(plan.echoes[index]), 0)]}
        while unfinished:
            index, event = await events.get()
            if isinstance(event, Exception):
                raise _as_api_error(event)
            if event.prompt:
                yield {
                    **common,
                    "choices": [plan.shapes.choice(index, dataclasses.replace(event, text=plan.echoes[index]), 0)],
                }
                continue
            drawn[index] = event.drawn
            unfinished -= event.finish is not None
            yield {**common, "choices": [plan.shapes.choice(index, event, len(plan.echoes[index]))]}
        read, made = plan.prompt_tokens, sum(drawn)
        yield {
            **common,
            "choices": [],
            "usage": {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made},
        }
    finally:
        ticket.cancel()


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, Overloaded):
        return ApiError(503, f"The server is overloaded: {error}", code="overloaded", type_="server_error")
    if isinstance(error, InputError):
        return ApiError(400, str(error))
    log(f"serve: a batch failed: {type(error).__name__}: {error}")
    return _internal(error)


def _internal(error: Exception) -> ApiError:
    message = f"The server failed on this request ({type(error).__name__})"
    return ApiError(500, message, code="internal_error", type_="server_error")


async def _answer(http: Request, plan: Plan, request: Parameters) -> Response:
    """A plan's answer, streamed or whole."""
    served: LoadedModel = http.app.state.served
    stream = chunks(http.app.state.engine, plan, served.name, f"lmforge-{served.fingerprint}")
    await anext(stream)
    if request.stream:
        return EventSourceResponse(_events(stream, request.usage_wanted), sep="\n")
    whole: dict[str, Any] = {}
    async with contextlib.aclosing(stream):
        async for chunk in stream:
            if await http.is_disconnected():
                return Response(status_code=499)  # nobody reads it
            _fold(plan.shapes, whole, chunk)
    choices = [choice for _, choice in sorted(whole["choices"].items())]
    return JSONResponse({**whole, "object": plan.shapes.whole, "choices": choices})


async def _events(stream: AsyncGenerator[dict[str, Any], None], usage: bool) -> AsyncIterator[str]:
    """The data lines of a stream, ended by [DONE]; or by an error, which has no other way once the answer has begun."""
    async with contextlib.aclosing(stream):
        try:
            async for chunk in stream:
                if usage or chunk["choices"]:
                    yield json.dumps({"usage": None, **chunk} if usage else chunk)
        except ApiError as error:
            yield json.dumps(error.body)
            return
    yield "[DONE]"


def _fold(shapes: Completions | Chat, whole: dict[str, Any], chunk: dict[str, Any]) -> None:
    """Add a chunk to the whole answer, whose `choices` are kept by index."""
    choices = whole.setdefault("choices", {})
    whole |= {key: value for key, value in chunk.items() if key != "choices"}
    for choice in chunk["choices"]:
        if choice["index"] in choices:
            shapes.fold(choices[choice["index"]], choice)
        else:
            choices[choice["index"]] = choice


def _card(served: LoadedModel) -> dict[str, Any]:
    """What /v1/models says of the model."""
    created = (
        int((served.directory / "config.json").stat().st_mtime) if (served.directory / "config.json").exists() else 0
    )
    return {
        "id": served.name,
        "object": "model",
        "created": created,
        "owned_by": "lmforge",
        "max_model_len": served.context,
        "compression": list(served.methods),
    }


class _GuardedApp(FastAPI):
    """FastAPI behind a `Guard`, which stands before the library's own limit of bodies, too."""

    def __init__(self, hosts: Collection[str], **options: Any) -> None:
        super().__init__(**options)
        self.guard = Guard(super().__call__, hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.guard(scope, receive, send)


def create_app(served: LoadedModel, hosts: Collection[str] = (), batch_invariant: bool = True) -> FastAPI:
    """The application that answers for one model. Its engine thread lives as long as the application.

    `hosts`: the names beside local ones by which it may be called (`hosts.Guard`). `batch_invariant`: no answer depends
    on the requests that are answered with it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Engine(served.model, served.tokenizer, batch_invariant=batch_invariant) as app.state.engine:
            yield

    # FastAPI's own documentation pages load scripts from another host, so they are off.
    app = _GuardedApp(
        hosts, title="lmforge", lifespan=lifespan, docs_url=None, redoc_url=None, max_body_size=MAX_BODY_BYTES
    )
    app.state.served = served
    card = _card(served)

    def known(model: str | None) -> None:
        if model is not None and model != served.name:
            message = f"The model '{model}' does not exist; this server has '{served.name}'"
            raise ApiError(404, message, "model", "model_not_found")

    @app.api_route("/", include_in_schema=False, methods=READ)
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _NO_OTHER_HOSTS})

    @app.api_route("/health", methods=READ)
    def health() -> dict[str, str]:
        return {"status": "ok", "model": served.name}

    @app.api_route("/v1/models", methods=READ)
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.api_route("/v1/models/{model:path}", methods=READ)
    def model_card(model: str) -> dict[str, Any]:
        known(model)
        return card

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest, http: Request) -> Response:
        known(request.model)
        return await _answer(http, await run_in_threadpool(plan_completion, served, request), request)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        known(request.model)
        return await _answer(http, await run_in_threadpool(plan_chat, served, request), request)

    _answer_errors_as_openai(app)
    return app


def _answer_errors_as_openai(app: FastAPI) -> None:
    def respond(error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers={"Retry-After": "1"} if error.status == 503 else headers)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            return respond(
                ApiError(400, f"We could not parse the JSON body of your request: {problem['ctx']['error']}")
            )
        if len(problem["loc"]) < 2:
            return respond(
                ApiError(400, "Send one JSON object of parameters, with the header Content-Type: application/json")
            )
        param = str(problem["loc"][1])
        if problem["type"] == "missing":
            return respond(
                ApiError(400, f"you must provide a '{param}' parameter", param, "missing_required_parameter")
            )
        return respond(ApiError(400, f"Invalid value for '{param}': {problem['msg']}", param, "invalid_value"))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        cause = {404: "Invalid URL", 405: "Not allowed"}.get(error.status_code, str(error.detail))
        message = f"{cause} ({request.method} {request.url.path})"
        return respond(ApiError(error.status_code, message), error.headers)  # such as Allow of 405

    @app.exception_handler(Exception)
    async def failure(_: Request, error: Exception) -> JSONResponse:
        return respond(_internal(error))
