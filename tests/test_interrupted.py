"""Ctrl-C: one line and the status that shells give it."""

from __future__ import annotations

import pytest
import typer

from lmforge.interrupted import INTERRUPTED, Commands


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
