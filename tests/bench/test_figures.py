"""Every figure in README and docs is the one in bench/results, and a figure that was measured has its marker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bench.figures import BLOCK, VALUE, filled, pages, right, value
from hypothesis import assume, given
from hypothesis import strategies as st

from bench import figures, harness

HISTORY = ("log.md", "decisions.md", "benchmarks.md")  # history; and the page that is written whole
MEASURED = {
    "a ratio": re.compile(r"\d×|\d times (?:as|its|their|the|faster|fewer|slower|nanoGPT|tiktoken)\b"),
    "bits per byte": re.compile(r"\d\.\d+[^.|]{0,40}bits per byte|bits per byte[^.|]{0,30}\d\.\d{2}"),
    "a speed": re.compile(r"\d[ kMG]{0,3}(?:tokens|tok|[kMG]?B|GFLOP|documents|pages) ?(?:/|a |per )s(?:econd)?\b"),
}
# (page, what stands there): output of the demo; rules and bounds, which nobody measured
ALLOWED = (
    ("README.md", "0.258× the bytes"),
    ("train.md", "20 times its longest time so far"),
    ("recipe.md", "largest allowed rise of bits per byte, as a share (0.005 is 0.5%)"),
)


def unmarked(page: Path) -> list[str]:
    """Measured figures outside of every marker and block, with what stands around them; a sentence may go on in the
    next line."""
    text = VALUE.sub("", BLOCK.sub("", page.read_text(encoding="utf-8")))
    text = re.sub(r"\n(?=\S)(?![|#\-`])", " ", text)
    for name, part in ALLOWED:
        text = text.replace(part, "") if page.name == name else text
    return [
        f"{kind}: …{text[max(0, match.start() - 60) : match.end() + 20]}…"
        for kind, pattern in MEASURED.items()
        for match in pattern.finditer(text)
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages_say_what_was_measured(page: Path) -> None:
    assert right(page) == page.read_text(encoding="utf-8"), f"{page.name} differs from bench/results; run: make figures"


@pytest.mark.parametrize("page", [page for page in pages() if page.name not in HISTORY], ids=lambda page: page.name)
def test_a_measured_figure_has_its_marker(page: Path) -> None:
    assert not unmarked(page), "written by hand; give it a marker (bench/figures.py), or link to docs/benchmarks.md"


@pytest.mark.parametrize(
    "line",
    [
        "It is 9.4× faster.",
        "at 2.5 times the speed",
        "1.794 bits per byte against 2.016",
        "it needs 1.794\nbits per byte",
        "bits per byte: 1.61",
        "23,984 tokens/s",
        "43 MB/s of text",
        "601 documents a second",
    ],
)
def test_a_figure_by_hand_is_noticed(line: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n{line}\n")
    assert unmarked(page)
    page.write_text(f"<!-- figures: demo -->\n{line}\n<!-- /figures -->\n")
    assert not unmarked(page)


def test_the_list_of_exceptions_is_needed() -> None:
    texts = {page.name: re.sub(r"\n(?=\S)", " ", page.read_text(encoding="utf-8")) for page in pages()}
    for name, part in ALLOWED:
        assert part in texts[name]
        assert any(pattern.search(part) for pattern in MEASURED.values()), f"{name}: {part}"


@given(st.text())
def test_text_without_places_stays(text: str) -> None:
    assume("<!--" not in text)
    assert filled(text) == text


def test_a_changed_digit_is_noticed() -> None:
    text = "int8: <!--= int8: d_model 384, 6 layers/decode_1/ratio | .2f -->9.99<!--=--> times"
    mended = filled(text)
    assert mended != text
    assert filled(mended) == mended
    assert float(re.sub(r"<!--.*?-->", "", mended).split()[1]) == round(
        value("int8", "d_model 384, 6 layers/decode_1/ratio"), 2
    )


def test_a_changed_digit_in_readme_is_noticed() -> None:
    readme = pages()[0].read_text(encoding="utf-8")
    places = [match.span(5) for match in VALUE.finditer(readme)] + [match.span(3) for match in BLOCK.finditer(readme)]
    digits = [at for first, last in places for at in range(first, last) if readme[at].isdigit()]
    assert digits
    for at in digits[:: max(1, len(digits) // 8)]:
        altered = readme[:at] + str((int(readme[at]) + 1) % 10) + readme[at + 1 :]
        assert filled(altered) == readme


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match=r"bench/results/int8.json: no 'nowhere'"):
        value("int8", "nowhere/ratio")
    with pytest.raises(KeyError, match=r"bench/results/int8.json: no row 'nowhere'"):
        value("int8", "nowhere @machine")


def test_a_row_knows_its_machine() -> None:
    row = "d_model 384, 6 layers"
    assert value("int8", f"{row} @machine") == harness.Results("int8").rows()[row]["machine"]
    assert "AVX" in value("int8", f"{row} @processor")


def test_the_demo_is_told_once_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "Results", lambda name: harness.Results(name, folder=tmp_path))
    text = "<!-- figures: demo -->\n<!-- /figures -->\n"
    assert filled(text) == text
    measured = harness.Results("demo", folder=tmp_path)
    measured.add("demo/minutes", 6.25)
    assert "it takes 6.2 minutes" in filled(text)
    measured.add("demo/bits_per_byte", 1.7)
    assert "needs 1.700 bits per byte of held-out text." in filled(text)
    measured.add("demo/clean_bits_per_byte", 1.75)
    measured.add("demo/kneser_ney_clean", 1.95)
    assert (
        filled(text).strip().splitlines()[1].endswith("5-gram Kneser-Ney model of the same training text needs 1.950.")
    )
