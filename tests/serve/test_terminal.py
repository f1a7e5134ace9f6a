"""The command line: continuing a text, and listening on a port."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.generate.decode import Sampling
from lmforge.serve.terminal import generate_text, serve
from tests.serve.conftest import CONTEXT

SAMPLING = Sampling(max_tokens=12, temperature=1.0, seed=7)


def test_generated_text_is_streamed_counted_and_repeatable(served: LoadedModel) -> None:
    pieces: list[str] = []
    result = generate_text(served, "def f", SAMPLING, pieces.append)
    assert "".join(pieces) == result["text"] != ""
    assert len(pieces) > 1
    assert 0 < result["tokens"] <= 12
    assert result["seconds"] > 0
    assert generate_text(served, "def f", SAMPLING)["text"] == result["text"]


@pytest.mark.parametrize("prompt", ["", "the cat sat on the mat " * CONTEXT])
def test_empty_and_very_long_prompts_are_continued(served: LoadedModel, prompt: str) -> None:
    assert generate_text(served, prompt, SAMPLING)["tokens"] > 0


def test_a_taken_port_is_one_clear_line(served: LoadedModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: already in use") as caught:
            serve(served, "127.0.0.1", port)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [("no such host", 0, "--host"), ("192.0.2.1", 0, "--host"), ("127.0.0.1", 70000, "--port")],
)
def test_an_address_that_cannot_be_is_refused(served: LoadedModel, host: str, port: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        serve(served, host, port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly(model_dir: Path, number: signal.Signals) -> None:
    """The command as people run it: it names its address, answers, and a signal ends it with status 0, even amid an
    answer."""
    command = [sys.executable, "-m", "lmforge.cli", "serve", str(model_dir), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "http://" in line)
            address = re.search(r"http://\S+?:\d+", line)
            assert address
            body = {"prompt": "a", "max_tokens": CONTEXT - 10, "stream": True}
            with httpx.stream("POST", f"{address[0]}/v1/completions", json=body, timeout=60) as reply:
                assert reply.status_code == 200
                process.send_signal(number)
            assert process.wait(60) == 0
            assert "serve: stopped" in process.stderr.read()
        finally:
            process.kill()


def test_ctrl_c_ends_generating_with_one_line(model_dir: Path) -> None:
    command = [sys.executable, "-m", "lmforge.cli", "generate", str(model_dir), "--prompt", "def f"]
    command += ["--max-tokens", "10000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.read(20).startswith(b"def f")
            process.send_signal(signal.SIGINT)
            rest, said = process.communicate(timeout=60)
            assert process.returncode == 130
            assert said == b"lmforge: stopped\n"
            assert rest.endswith(b"\n")
        finally:
            process.kill()
