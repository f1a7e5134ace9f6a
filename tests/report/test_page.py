"""The page: complete, self-contained, well formed; nothing that a file holds breaks out of it, and no broken file
breaks it."""

import json
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.report.page import write_report
from tests.report.conftest import write_run

VOID = {"meta", "link", "br", "hr"}
LOADS = {"src", "href", "srcset", "data", "action", "poster", "xlink:href", "style", "content"}


class Checker(HTMLParser):
    """Collects elements, attributes and text; insists that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def read(run: Path) -> Checker:
    page = Checker(write_report(run).read_text(encoding="utf-8"))
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "img", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in LOADS:
                assert "//" not in (value or "")
    return page


def test_every_figure_of_a_finished_run_is_shown(finished_run: Path) -> None:
    text = read(finished_run).text
    for wanted in (
        "laptop",
        "9.0% below",
        "1.658",
        "1.821",
        "5.85 M",
        "5 min 10 s",
        "23.4 MB → 6.01 MB",
        "412 → 771",
        "0.257×",
        "exact duplicate",
        "technical",
        "64 KiB",
        "8,420,000",
        "Learning rate",
        "Prefill did not improve",
        "0.4560 – 0.6910",
        "self._randbelow",
        "vocab_size = 4096",
        "0.1.0 4f2c1aa",
        "Example CPU",
        "compression bits per byte",
    ):
        assert wanted in text, wanted  # fmt: skip
    assert "not run yet" not in text


def test_the_page_follows_from_the_files_alone(finished_run: Path) -> None:
    first = write_report(finished_run).read_bytes()
    assert write_report(finished_run).read_bytes() == first


def test_nothing_run_yet(tmp_path: Path) -> None:
    text = read(tmp_path).text
    assert text.count("not run yet") >= 10
    with pytest.raises(InputError, match="no run here"):
        write_report(tmp_path / "absent")


@pytest.mark.parametrize(
    "lost", ["corpus", "tokens", "train", "model", "compressed", "scores", "record.json", "recipe.toml"]
)
def test_a_part_that_is_missing_is_no_error(finished_run: Path, lost: str) -> None:
    path = finished_run / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert read(finished_run)


def test_altered_outputs_and_earlier_inputs_show_as_such(finished_run: Path) -> None:
    manifest = finished_run / "corpus/manifest.json"
    manifest.write_text(json.dumps({"content": "f" * 64, "files": {}}))
    record = json.loads((finished_run / "record.json").read_text())
    record["stages"]["train"]["outputs"]["model"] = json.loads((finished_run / "model/manifest.json").read_text())[
        "content"
    ]
    record["stages"]["compress"]["inputs"]["model"] = "e" * 64
    (finished_run / "record.json").write_text(json.dumps(record))
    text = read(finished_run).text
    assert "altered since" in text
    assert "made from an earlier model" in text


def test_samples_are_linked_only_where_they_are(finished_run: Path) -> None:
    assert ("a", {"href": "corpus/samples.html"}) in read(finished_run).tags
    (finished_run / "corpus/samples.html").unlink()
    assert ("a", {"href": "corpus/samples.html"}) not in read(finished_run).tags


def test_a_worse_model_is_not_called_better(finished_run: Path) -> None:
    (finished_run / "scores/bits_per_byte.json").write_text(json.dumps({"value": 2.0, "metric": "bits per byte"}))
    text = read(finished_run).text
    assert "9.8% above" in text
    assert "below" not in text.split("Stages")[0]


def replace_texts(value: Any, hostile: str) -> Any:
    """`value` with every string in it, keys too, made hostile."""
    if isinstance(value, dict):
        added = {hostile + str(len(value)): 1, hostile: {"value": 1}}
        return {key: replace_texts(inner, hostile) for key, inner in value.items()} | added
    if isinstance(value, list):
        return [replace_texts(inner, hostile) for inner in value]
    return hostile if isinstance(value, str) else value


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=http://x.test onerror=alert(1)>',
    "</pre></style><style>@import url(//x.test)",
    "' onmouseover='alert(1)",
    "&lt;b&gt;\x00\x1b\ud800",
    "]]><!-- </title>",
    "\u202e</svg><svg onload=x>",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_stays_text(finished_run: Path, hostile: str) -> None:
    usual = {tag for tag, _ in read(finished_run).tags}
    for path in [*finished_run.rglob("*.json"), *finished_run.rglob("*.jsonl")]:
        if path.name != "manifest.json":
            lines = [json.dumps(replace_texts(json.loads(line), hostile)) for line in path.read_text().splitlines()]
            path.write_text("\n".join(lines))
    (finished_run / "recipe.toml").write_bytes(f'name = "{hostile}"\n{hostile}'.encode("utf-8", "surrogatepass"))
    (finished_run / "scores" / "a<script>.json").write_text(json.dumps({"value": 1, "metric": hostile}))
    page = read(finished_run)
    assert {tag for tag, _ in page.tags} == usual
    assert hostile[:5] in page.text


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> Any:
    """`value` with some parts of it replaced by anything JSON can say."""
    if draw(st.integers(0, 9)) == 0:
        return draw(ANYTHING)
    if isinstance(value, dict):
        return {key: draw(damaged(inner)) for key, inner in value.items()}
    if isinstance(value, list):
        return [draw(damaged(inner)) for inner in value[:3]]
    return value


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_no_content_of_the_files_is_an_exception(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run")
        for path in sorted(run.rglob("*.json*")):
            lines = path.read_text().splitlines()[:12]
            path.write_text(
                "\n".join(json.dumps(data.draw(damaged(json.loads(line)), label=path.name)) for line in lines)
            )
        broken = data.draw(
            st.sampled_from(["record.json", "train/metrics.jsonl", "scores/kneser_ney.json", "recipe.toml"])
        )
        (run / broken).write_bytes(data.draw(st.binary(max_size=40)))
        assert read(run)
