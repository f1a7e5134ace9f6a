"""The character set of a page: what its bytes are, whatever its head says."""

import pytest

from lmforge.corpus.sources.charsets import decoded
from lmforge.corpus.sources.encodings import NotText


@pytest.mark.parametrize(
    ("data", "charset"),
    [
        ("naïve".encode(), None),
        ("naïve".encode(), "latin-1"),
        ("naïve".encode("latin-1"), "iso-8859-1"),
        ("naïve".encode("utf-16"), "utf-16"),
        ('<meta charset="windows-1252">naïve'.encode("latin-1"), None),
        (b"\xff\xfe\xfd\x00", ("no-such")),
        (b"", None),
    ],
)
def test_decoded_finds_the_encoding(data: bytes, charset: str | None) -> None:
    text = decoded(data, charset)
    assert "naïve" in text or len(data) < 5


RU = "<p>Сегодня утром старик увидел каменный мост у реки. Никто не знал, почему это было важно.</p>"
UK = "<p>Київ є столицею України і лежить на берегах Дніпра. Щоранку діти їздять на роботу.</p>"
JA = "<p>今朝、老人は川のほとりで石の橋を建てた。学校の近くの学者は古い地図を集めたと言われている。</p>"
KO = "<p>오늘 아침에 노인은 강가에서 돌다리를 보았다. 아이들은 새로운 철도에 대해 이야기했다.</p>"


@pytest.mark.parametrize("named", [None, "utf-8", "iso-8859-1", "x-nothing"])
@pytest.mark.parametrize(
    ("page", "name"),
    [
        (RU, "cp1251"),
        (RU, "koi8_r"),
        (UK, "koi8_u"),
        (JA, "euc_jp"),
        (JA, "shift_jis"),
        (JA, "iso2022_jp"),
        (KO, "euc_kr"),
    ],
)
def test_a_page_in_another_set_than_its_head_names(page: str, name: str, named: str | None) -> None:
    assert decoded(page.encode(name), named) == page
    declared = '<meta charset="utf-8">' + page
    assert decoded(declared.encode(name), named) == declared


def test_a_korean_page_without_a_name() -> None:
    assert decoded(KO.encode("euc_kr")) == KO


def test_a_page_in_utf_16_whose_head_names_another() -> None:
    assert decoded(RU.encode("utf-16"), "utf-8") == RU


def test_a_page_that_is_in_no_set_is_refused() -> None:
    with pytest.raises(NotText):
        decoded(b"<p>" + bytes(range(128, 256)) * 9)
