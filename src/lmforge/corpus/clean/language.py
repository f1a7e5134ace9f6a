"""Which language a text is in, by py3langid, whose model (97 languages) comes with its package."""

from __future__ import annotations

SAMPLE = 3000  # characters looked at: the middle of a long text, which is neither title nor imprint


def language_of(text: str) -> str:
    """The ISO 639-1 code of the likeliest language. There is always one: of a text without words it says nothing of
    worth."""
    from py3langid import langid  # its model takes most of a second to load, once for each process

    start = max(0, (len(text) - SAMPLE) // 2)
    return str(langid.classify(text[start : start + SAMPLE])[0])
