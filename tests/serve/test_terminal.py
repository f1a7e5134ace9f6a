"""The terminal: continuing a text, talking, and listening on a port."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from lmforge.errors import InputError
from lmforge.formats.loaded import CHAT_STOP, LoadedModel
from lmforge.generate.decode import Sampling
from lmforge.serve.terminal import chat, generate_text, serve, trim
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


def talk(served: LoadedModel, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    chat(served, SAMPLING)


def test_a_piped_conversation(
    served: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(served, monkeypatch, "the cat\n\n")
    answer = capsys.readouterr().out
    assert answer.strip()
    talk(served, monkeypatch, "the cat\n/reset\nthe cat\n/quit\nnever read\n")
    captured = capsys.readouterr()
    assert captured.out == answer * 2, "after /reset the same words get the same answer"
    assert captured.err == "forgotten\n"
    talk(served, monkeypatch, "the cat\nthe cat\n")
    assert capsys.readouterr().out.startswith(answer)


def test_the_second_turn_reads_the_first(served: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []

    def spy(
        model: object, tokenizer: object, prompt: list[int], sampling: object, stop: tuple[str, ...]
    ) -> list[object]:
        prompts.append(served.tokenizer.decode(prompt))
        assert stop == CHAT_STOP
        return []

    monkeypatch.setattr("lmforge.serve.terminal.stream_text", spy)
    talk(served, monkeypatch, "first words\nsecond words\n")
    assert "first words" in prompts[1]
    assert "second words" in prompts[1]


def test_old_turns_are_dropped_in_pairs(served: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    history = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} the cat"} for i in range(21)]
    for answer in range(8, 56, 4):
        kept, prompt = trim(served, history, answer)
        assert len(prompt) <= CONTEXT - answer
        assert 1 <= len(kept) < 21
        assert kept == history[-len(kept) :]
        assert kept[0]["role"] == "user"
    one, long = trim(served, [{"role": "user", "content": "the cat " * CONTEXT}], 16)
    assert len(one) == 1
    assert len(long) > CONTEXT
    assert "long message" in capsys.readouterr().err


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
