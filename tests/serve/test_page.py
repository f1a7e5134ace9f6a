"""The chat page: served at /, whole in itself, usable without a mouse."""

from __future__ import annotations

import re

import httpx
import pytest

from lmforge.serve.api import PAGE

HTML = PAGE.read_text(encoding="utf-8")


def test_the_page_is_served_at_the_root(base_url: str) -> None:
    reply = httpx.get(base_url)
    assert reply.text == HTML
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_nothing_is_loaded_from_elsewhere() -> None:
    assert not re.findall(r"(?:https?:)?//[a-z0-9]", HTML, re.IGNORECASE)
    assert not re.findall(r"@import|<script[^>]+src|<link(?![^>]+href=\"data:)|<iframe|<img", HTML, re.IGNORECASE)


def test_text_of_the_model_is_never_read_as_html() -> None:
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", HTML)


def test_every_field_has_a_label_and_every_reference_exists() -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', HTML))
    labelled = set(re.findall(r'<label[^>]* for="([^"]+)"', HTML))
    assert set(re.findall(r'<(?:input|textarea)[^>]*\bid="([^"]+)"', HTML)) == labelled
    used = set(re.findall(r'\bat\("([^"]+)"\)', HTML)) | set(
        re.findall(r'aria-(?:controls|labelledby)="([^"]+)"', HTML)
    )
    assert used <= ids
    assert len(ids) == len(re.findall(r'\bid="', HTML))


@pytest.mark.parametrize(
    "words",
    ['<html lang="en">', 'name="viewport"', "prefers-color-scheme: dark", "def fibonacci(n):\n", 'role="status"'],
)
def test_what_the_page_promises(words: str) -> None:
    assert words in HTML
