"""What looks out of place when bytes are read in the wrong encoding, and what does not in the right one."""

import pytest

from lmforge.corpus.sources.strangeness import MOST_STRANGE, is_korean, strangeness


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("今日は天気がいいですね。", "cp932", "cp949"),  # syllables of Korean that nobody writes
        ("Сегодня утром старик увидел мост.", "cp1251", "cp1252"),  # more accented letters than plain ones
        ("Добрий день, як справи? Їжак.", "koi8_u", "gb18030"),  # Chinese words parted by blanks
    ],
)
def test_the_wrong_reading_is_strange(text: str, right: str, wrong: str) -> None:
    data = text.encode(right)
    assert strangeness(data, right) == 0
    assert strangeness(data, wrong) > MOST_STRANGE
    assert strangeness(data, "no-such-codec") == 1


def test_korean_is_made_of_common_syllables() -> None:
    assert is_korean("오늘은 날씨가 좋습니다.".encode("cp949"))
    assert not is_korean("今日は天気がいいですね。".encode("cp932"))
