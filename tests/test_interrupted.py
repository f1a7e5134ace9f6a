"""Ctrl-C: one line and the status that shells give it."""

from __future__ import annotations

import contextlib
import signal

import pytest
import typer

from lmforge.interrupted import INTERRUPTED, Commands, ctrl_c_heeded


@pytest.mark.parametrize(("command", "words"), [("train", "the same command goes on"), ("chat", "stopped")])
def test_ctrl_c_is_one_line_and_status_130(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(cls=Commands)

    def stop() -> None:
        raise KeyboardInterrupt

    app.command("train")(stop)
    app.command("chat")(stop)
    with pytest.raises(SystemExit) as ended:
        app([command])
    assert ended.value.code == INTERRUPTED == 130
    said = capsys.readouterr().err
    assert said.startswith("lmforge: stopped")
    assert words in said
    assert said.count("\n") == 1
    assert ("goes on" in said) is (command == "train")


def test_ctrl_c_that_is_lost_once_is_heeded_in_the_next_round() -> None:
    with ctrl_c_heeded() as check:
        check()
        with contextlib.suppress(KeyboardInterrupt):  # stands for a library that loses it
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_somebody_else_heeds_stays_theirs() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: got.append(number))
    try:
        with ctrl_c_heeded() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)
    assert got == [signal.SIGINT]
