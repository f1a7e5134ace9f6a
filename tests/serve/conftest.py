"""A tiny untrained model, saved, served in this process on a free loopback port."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import uvicorn

from lmforge.formats.load import load_any
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import model_tensors, write_model
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.record import atomic_directory
from lmforge.serve.api import create_app
from lmforge.tokens.bpe import train_tokenizer

TEXTS = [
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "the cat sat on the mat, naïve café — 猫\n",
]
CONTEXT = 128


def save_tiny(directory: Path, seed: int = 3, d_model: int = 32) -> Path:
    """Write a complete saved model."""
    tokenizer = train_tokenizer(TEXTS * 3, 280)
    size = {"layers": 2, "d_model": d_model, "heads": 2, "kv_heads": 2, "d_ff": 64}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, context=CONTEXT, **size))
    model.initialise(seed)
    tokenizer_file = directory.parent / f".{directory.name}.tokenizer.json"
    directory.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(tokenizer_file)
    with atomic_directory(directory) as temporary:
        write_model(temporary, model.config, model_tensors(model), tokenizer_file)
    tokenizer_file.unlink()
    return directory


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(scope="session")
def served(model_dir: Path) -> LoadedModel:
    return load_any(model_dir)


@pytest.fixture(scope="session")
def base_url(served: LoadedModel) -> Iterator[str]:
    """The address of a running server. The socket listens before the server starts, so a first request only waits."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(served), log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listener.close()
    assert not thread.is_alive()


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def sse(body: str) -> list[object]:
    """The JSON of each event of a stream, [DONE] as text."""
    data = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in data]
