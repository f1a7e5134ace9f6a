"""Talking to a model at the terminal: lines in, answers out, and commands that begin with a slash."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.output import Output, create_output

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.generate.decode import Sampling
from lmforge.progress import log
from lmforge.record import write_atomic
from lmforge.serve.terminal import collect

Messages = list[dict[str, str]]
HELP = """\
/help          this list
/reset         forget the conversation
/save FILE     write the conversation (JSON, OpenAI's messages)
/load FILE     go on with a saved conversation
/quit          leave (also /exit, Ctrl-D, Ctrl-C on an empty line)
Ctrl-C ends an answer and keeps the conversation. Pasted text may have many lines. A message that is to begin with /
begins with //."""


class Conversation:
    """One conversation: what was said, and the commands about it."""

    def __init__(self, served: LoadedModel, sampling: Sampling) -> None:
        self.served, self.sampling = served, sampling
        self.messages: Messages = []

    def take(self, line: str) -> bool:
        """Answer one line of the user's; False: they want to leave."""
        if line.startswith("/") and not line.startswith("//"):
            return self._command(*line.split(maxsplit=1))
        if line:
            said = {"role": "user", "content": line.removeprefix("/") if line.startswith("//") else line}
            self.messages = _answer(self.served, [*self.messages, said], self.sampling)
        return True

    def _command(self, name: str, argument: str = "") -> bool:
        if name in ("/quit", "/exit"):
            return False
        if name == "/help":
            log(HELP)
        elif name == "/reset":
            self.messages = []
            log("forgotten")
        elif name in ("/save", "/load"):
            try:
                (self._save if name == "/save" else self._load)(argument.strip())
            except (OSError, InputError, ValueError) as error:
                log(f"{name}: {error}")
        else:
            log(f"{name}: no such command; /help lists them, and // in the place of / sends the line as it is")
        return True

    def _save(self, file: str) -> None:
        write_atomic(_path(file), json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1) + "\n")
        log(f"{len(self.messages)} messages written to {file}")

    def _load(self, file: str) -> None:
        loaded = json.loads(_path(file).read_text(encoding="utf-8"))
        messages = loaded.get("messages") if isinstance(loaded, dict) else loaded
        if not isinstance(messages, list):
            raise InputError(f"{file}: no list of messages; give a file that /save wrote")
        if messages:
            self.served.conversation(messages)  # every role and content is one that can be rendered
        self.messages = messages
        log(f"{len(messages)} messages read from {file}")


def _path(file: str) -> Path:
    if not file:
        raise InputError("name a file")
    return Path(file).expanduser()


def chat(served: LoadedModel, sampling: Sampling) -> None:
    """Talk until /quit or the end of the input; /help lists the commands. Answers go to stdout, everything else to
    stderr.

    The oldest turns are dropped when the conversation outgrows the context. Ctrl-C ends the answer and keeps the
    conversation; at an empty prompt, it leaves.

    Raises:
        InputError: piped input that is no UTF-8.
    """
    read = piped_line
    if sys.stdin.isatty():
        log(f"{served.name}: {served.context} tokens of context; /help lists commands, /quit leaves")
        read = line_editor()
    conversation = Conversation(served, sampling)
    while (line := read()) is not None and conversation.take(line.strip()):
        pass


def piped_line() -> str | None:
    """The next line of stdin; None at its end or on Ctrl-C."""
    try:
        return sys.stdin.readline() or None
    except KeyboardInterrupt:
        log("")
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"stdin: not UTF-8 text ({error}); convert it first") from error


def line_editor(source: Input | None = None, output: Output | None = None) -> Callable[[], str | None]:
    """A reader of messages at a terminal: line editing, history over sessions, pasted text of any length and number of
    lines. It gives None on Ctrl-D, or on Ctrl-C where nothing was typed; with something typed, Ctrl-C discards that."""
    session: PromptSession[str] = PromptSession(
        history=_history(), input=source, output=output or create_output(stdout=sys.stderr)
    )

    def read() -> str | None:
        while True:
            try:
                return session.prompt("> ")
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not session.default_buffer.text:
                    return None

    return read


def history_file() -> Path:
    """Where this user's lines are kept (XDG_STATE_HOME)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lmforge" / "chat_history"


def _history() -> History:
    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            pass
    except OSError as error:
        log(f"{path}: lines are not kept ({error.strerror})")
        return InMemoryHistory()
    return FileHistory(str(path))


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
        collect(served, prompt, dataclasses.replace(sampling, stop_ids=served.stop_ids), served.chat_stop, show)
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
