"""Language identification needs no download and looks at the middle of a long text."""

import pytest

from lmforge.corpus.clean.language import SAMPLE, language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The smith put down his hammer and went to the window to see who was coming up the road.", "en"),
        ("Der Schmied legte den Hammer weg und ging zum Fenster, um zu sehen, wer die Straße heraufkam.", "de"),
        ("Le forgeron posa son marteau et alla à la fenêtre pour voir qui montait la route.", "fr"),
        ("Кузнец положил молот и подошёл к окну посмотреть, кто идёт по дороге.", "ru"),
        ("鍛冶屋は槌を置き、誰が道を上がってくるのかを見に窓へ行った。", "ja"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


def test_the_middle_decides_and_nothing_raises() -> None:
    assert language_of("Menü Start Über uns " * 5 + "The old road went down to the river. " * SAMPLE) == "en"
    for text in ("", " ", "1234", "\ud800"):
        assert language_of(text)
