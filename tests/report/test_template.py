"""The frame: a whole document that allows no script and fetches nothing."""

from lmforge.report.markup import tag
from lmforge.report.template import page, section


def test_the_frame() -> None:
    document = page("a <b> & c", section("part", "Part <1>", tag("p", "text")))
    assert document.startswith('<!doctype html>\n<html lang="en">')
    assert "<title>a &lt;b&gt; &amp; c</title>" in document
    assert "default-src &#x27;none&#x27;" in document
    assert '<section id="part"><h2>Part &lt;1&gt;</h2><p>text</p></section>' in document
    assert "http" not in document.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in document
