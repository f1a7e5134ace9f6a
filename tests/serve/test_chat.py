"""Talking at the terminal: commands, line editing, history, and what a pipe says."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from lmforge.formats.loaded import CHAT_STOP, LoadedModel
from lmforge.generate.decode import Piece, Sampling
from lmforge.serve.chat import Conversation, chat, history_file, line_editor, trim
from tests.serve.conftest import CONTEXT

SAMPLING = Sampling(max_tokens=12, temperature=1.0, seed=7)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


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


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that reach the model, which says "yes"."""
    prompts: list[list[int]] = []

    def spy(model: object, tokenizer: object, prompt: list[int], *_: object) -> Iterator[Piece]:
        prompts.append(prompt)
        yield Piece("yes", ())

    monkeypatch.setattr("lmforge.serve.terminal.stream_text", spy)
    return prompts


@pytest.mark.parametrize("line", ["/help", "/reset", "/save", "/load", "/halp", "/", "/save /no/such/folder/x"])
def test_commands_are_answered_and_never_sent(
    served: LoadedModel, heard: list[list[int]], capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert Conversation(served, SAMPLING).take(line)
    assert not heard
    captured = capsys.readouterr()
    assert captured.err.strip()
    assert not captured.out


def test_help_lists_every_command(served: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(served, SAMPLING)
    conversation.take("/help")
    listed = re.findall(r"/[a-z]+", capsys.readouterr().err)
    assert {"/help", "/reset", "/save", "/load", "/quit", "/exit"} <= set(listed)
    for name in set(listed) - {"/quit", "/exit"}:
        conversation.take(name)
    assert "no such command" not in capsys.readouterr().err
    assert not conversation.take("/quit")


def test_two_slashes_send_a_message_that_begins_with_one(served: LoadedModel, heard: list[list[int]]) -> None:
    conversation = Conversation(served, SAMPLING)
    conversation.take("//etc")
    assert len(heard) == 1
    assert conversation.messages[0]["content"] == "/etc"


def test_a_conversation_is_saved_and_gone_on_with(
    served: LoadedModel, heard: list[list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "talk.json"
    first, second = Conversation(served, SAMPLING), Conversation(served, SAMPLING)
    first.take("the cat")
    first.take(f"/save {file}")
    assert json.loads(file.read_text())["messages"] == first.messages != []
    second.take(f"/load {file}")
    assert second.messages == first.messages
    for wrong in ("{", "3", '[{"role": "wizard", "content": "a"}]', "[3]"):
        file.write_text(wrong)
        capsys.readouterr()
        second.take(f"/load {file}")
        assert capsys.readouterr().err.startswith("/load: ")
        assert second.messages == first.messages, "what was there stays"


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(
    served: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Iterator[Piece]:
        yield Piece("half a", ())
        raise KeyboardInterrupt

    monkeypatch.setattr("lmforge.serve.terminal.stream_text", interrupted)
    conversation = Conversation(served, SAMPLING)
    assert conversation.take("the cat")
    assert conversation.messages[-1] == {"role": "assistant", "content": "half a"}
    assert "(stopped)" in capsys.readouterr().err


def typed(keys: str, times: int = 1) -> list[str | None]:
    with create_pipe_input() as source:
        read = line_editor(source, DummyOutput())
        source.send_text(keys)
        return [read() for _ in range(times)]


def test_long_pastes_of_many_lines_come_whole() -> None:
    text = "\n".join(f"line {number} " + "x" * 90 for number in range(400))
    assert typed(f"\x1b[200~{text}\x1b[201~\r") == [text]


def test_lines_are_edited_and_remembered_over_sessions() -> None:
    assert typed("cat\x01the \r") == ["the cat"]  # Ctrl-A: to the beginning
    assert typed("\x1b[A\r") == ["the cat"]  # arrow up, in another session
    assert history_file().stat().st_mode & 0o777 == 0o600


def test_ctrl_c_discards_what_was_typed_and_then_leaves() -> None:
    assert typed("half\x03whole\r\x03", 2) == ["whole", None]
    assert typed("\x04") == [None]


def test_a_history_that_cannot_be_kept_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert typed("a\r") == ["a"]
    assert "lines are not kept" in capsys.readouterr().err


def test_at_a_real_terminal(model_dir: Path, tmp_path: Path) -> None:
    """The command as people run it, at a pseudo-terminal: a paste beyond 4,095 characters, commands."""
    master, slave = pty.openpty()
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    command = [sys.executable, "-m", "lmforge.cli", "chat", str(model_dir), "--max-tokens", "4"]
    with subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
        preexec_fn=_own_terminal,
    ) as process:
        os.close(slave)
        screen = _Screen(master)
        try:
            screen.wait_for("/help lists commands")
            screen.wait_for(">")
            words = "the cat " * 700
            os.write(master, b"\x1b[200~")
            for start in range(0, len(words), 500):
                os.write(master, words[start : start + 500].encode())
                screen.read(0.1)
            os.write(master, b"\x1b[201~\r")
            screen.wait_for("long message:")
            screen.wait_for("\x1b[?2004h")  # the next prompt
            os.write(master, f"/save {tmp_path / 'talk.json'}\r".encode())
            screen.wait_for("2 messages written")
            os.write(master, b"/quit\r")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(master)
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert saved[0]["content"] == words.strip()


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _Screen:
    """What a program wrote on a pseudo-terminal. It answers the one question that a line editor asks: where the cursor
    is."""

    def __init__(self, master: int) -> None:
        self.master, self.text = master, ""

    def read(self, seconds: float) -> None:
        while select.select([self.master], [], [], seconds)[0]:  # until nothing more comes
            try:
                piece = os.read(self.master, 65536).decode("utf-8", "replace")
            except OSError as error:  # the program has ended
                raise AssertionError(f"ended after {self.text[-500:]!r}") from error
            if "\x1b[6n" in piece:
                os.write(self.master, b"\x1b[1;1R")
            self.text += piece

    def wait_for(self, words: str) -> None:
        until = time.monotonic() + 60
        while words not in self.text:
            assert time.monotonic() < until, f"{words!r} never came: {self.text[-500:]!r}"
            self.read(0.05)
        self.text = self.text.partition(words)[2]
