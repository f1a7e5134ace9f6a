"""docs/benchmarks.md: each results file as tables, each row with its command, commit and machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bench.harness import FOLDER, Results
from bench.tables import Table, as_markdown, at, command_of, measured, page, scalars, sections, shown

from bench import tables


@pytest.mark.parametrize(
    ("number", "form", "text"),
    [
        (0.1234, ".1f ×100", "12.3"),
        (2.5e6, ",.1f ÷1e6", "2.5"),
        (0.04, ".0f 1÷", "25"),
        (1234, ",d", "1,234"),
        (0.9, ".0%", "90%"),
        (True, "", "yes"),
        ("bf16", "", "bf16"),
    ],
)
def test_a_figure_is_shown_in_its_format(number: object, form: str, text: str) -> None:
    assert shown(number, form) == text


def test_every_results_file_is_on_the_page() -> None:
    text = page()
    described = sections()
    for path in FOLDER.glob("*.json"):
        title = described[path.stem].title if path.stem in described else path.stem.replace("_", " ").capitalize()
        assert f"## {title}\n" in text
        for row in Results(path.stem).rows().values():
            assert row["commit"] in text
            assert row["machine"] in text


def test_every_described_table_has_rows() -> None:
    for name, section in sections().items():
        if (FOLDER / f"{name}.json").exists():
            results = Results(name).figures()
            for table in section.tables:
                text = as_markdown(table, results)
                assert text, f"{name}: no rows at {table.rows!r}"
                columns = [part.strip() for part in text.splitlines()[-1].strip("|").split("|")]
                assert any(re.search(r"\d|yes|no", part) for part in columns), f"{name}: nothing in {table.rows!r}"


def test_columns_take_figures_from_inside() -> None:
    results = {"kinds": {"a": {"x": {"y": 1.25}, "n": 3}, "b": {"n": 4}, "none": {}}, "list": [{"who": "c", "n": 1}]}
    assert as_markdown(Table("kinds", ("y|x/y|.1f", "n|n|d"), label="kind"), results) == (
        "| kind | y | n |\n| --- | --- | --- |\n| a | 1.2 | 3 |\n| b |  | 4 |\n"
    )
    assert "| c | 1 |" in as_markdown(Table("list", ("n|n|d",), label="who"), results)
    assert as_markdown(Table("kinds/a", caption="All."), results).startswith("All.\n\n| figure | value |")
    assert as_markdown(Table("nowhere", ("n|n|d",)), results) == ""
    assert at(results, "list/0/n") == 1
    assert at(results, "list/7/n") is None
    assert dict(scalars(results["kinds"])) == {"a/x/y": 1.25, "a/n": 3, "b/n": 4}


def test_rows_measured_apart_are_told_apart(tmp_path: Path) -> None:
    results = Results("toy", folder=tmp_path)
    results.add("one", {"n": 1})
    assert measured(results).count("\n") == 1
    results.add("two", {"n": 2})
    text = results.path.read_text()
    results.path.write_text(
        text[: text.index('"two"')] + text[text.index('"two"') :].replace('commit": "', 'commit": "x')
    )
    assert [line.split(":")[0] for line in measured(results).splitlines()] == ["- one", "- two"]


def test_what_nobody_described_is_listed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Results("new_thing", folder=tmp_path).add("row", {"speed": {"ours": 1234.5678, "list": [1]}, "ok": True})
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    monkeypatch.setattr(tables, "Results", lambda name: Results(name, folder=tmp_path))
    text = page()
    assert "## New thing\n" in text
    assert "| row/speed/ours | 1235 |" in text
    assert "| row/ok | yes |" in text


def test_commands_are_todays() -> None:
    assert command_of("int8") == "python -m bench.speed.int8"
    assert command_of("nothing") == ""
