"""Encodings: what a text is in is told from its bytes, or refused."""

import pytest

from lmforge.corpus.sources.encodings import Binary, Encoding, NotText, UnknownEncoding, decoded, encoding_of

RU = "Сегодня утром старик увидел каменный мост у реки. Никто не знал, почему это было важно. "
ZH = "今天早上老人在河边修建了一座石桥。虽然天气寒冷，但是孩子们仍然收集了许多古老的地图。"
TW = "今天早上老師看見河邊的石橋。孩子們在學校附近談論新的鐵路，沒有人知道為什麼這麼重要。"
JA = "今朝、老人は川のほとりで石の橋を建てた。学校の近くの学者は古い地図を集めたと言われている。"
KO = "오늘 아침에 노인은 강가에서 돌다리를 보았다. 아이들은 새로운 철도에 대해 이야기했다. "
FR = "L'été dernier, les élèves étaient déjà à l'école où ils apprenaient le français. "
PL = "Dziś rano stary nauczyciel zobaczył kamienny most. Żółta łódź płynęła powoli przez jezioro. "
EL = "Σήμερα το πρωί ο δάσκαλος είδε την παλιά γέφυρα κοντά στο ποτάμι. "
HE = "הבוקר המורה הזקן ראה את גשר האבן ליד הנהר. הילדים שיחקו בגן. "
AR = "رأى المعلم العجوز الجسر الحجري قرب النهر هذا الصباح. "
TH = "เช้าวันนี้ครูเก่าเห็นสะพานหินใกล้แม่น้ำ เด็กๆ เล่นอยู่ในสวน "
CASES = [
    (RU, "cp1251 koi8_r cp866 iso8859_5 utf-16-le utf-16-be"), (ZH, "gbk gb18030 hz utf-16-le utf-16-be utf-32-le"),
    (TW, "big5 utf-16-be"),
    (JA, "shift_jis euc_jp iso2022_jp utf-16-le utf-32-be"), (KO, "euc_kr iso2022_kr utf-16-le"),
    (FR, "cp1252 latin_1 mac_roman cp850 utf-16-le utf-8"), (PL, "cp1250 iso8859_2"), (EL, "cp1253 iso8859_7"),
    (HE, "cp1255"), (AR, "cp1256"), (TH, "tis_620 utf-16-le"),
]  # fmt: skip


def text_in(data: bytes, block: int = 1 << 20) -> tuple[str, Encoding]:
    def blocks() -> list[bytes]:
        return [data[start : start + block] for start in range(0, len(data), block)]

    encoding = encoding_of(blocks)
    return "".join(decoded(blocks(), encoding)), encoding


@pytest.mark.parametrize(("text", "name"), [(text, name) for text, names in CASES for name in names.split()])
@pytest.mark.parametrize("times", [1, 30])
def test_text_in_an_old_encoding_is_read_as_what_it_is(text: str, name: str, times: int) -> None:
    text = (text.strip() + "\n") * times
    data = text.encode(name)
    assert text_in(data)[0] == text
    if not name.startswith("utf") and times > 1:
        assert text_in(data, 100)[0] == text  # whatever the blocks


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("今日は天気がいいですね。", "shift_jis"), ("Добрий день, як справи? Їжак.", "koi8_u"),
        ("Добрий день, як справи? Їжак.", "cp1125"), ("Dobrý den, jak se máte? Žlutý kůň.", "iso8859_2"),
        ("Dzień dobry, jak się masz? Żółta łódź.", "cp852"), ("오늘은 날씨가 좋습니다.", "johab"),
        ("วันนี้อากาศดีมาก", "utf-16-le"), ("今天天气很好，我们去公园。", "gbk"),
    ],
)  # fmt: skip
def test_a_text_of_one_short_line(text: str, name: str) -> None:
    assert text_in(text.encode(name))[0] == text


def test_korean_is_not_taken_for_chinese() -> None:
    """Every Korean syllable of EUC-KR is a common character of Chinese too."""
    for markup in ("", "<p class='x'>", "title: "):
        text = f"{markup}안녕하세요 오늘은 날씨가 참 좋네요 그래서 친구와 함께 공원에 다녀왔습니다\n" * 9
        assert text_in(text.encode("euc_kr"))[0] == text


def test_parts_in_two_encodings_are_read_line_by_line() -> None:
    text, encoding = text_in((RU + "\n").encode() * 5 + (RU + "\n").encode("cp1251") * 5)
    assert text == (RU + "\n") * 10
    assert encoding.label == "utf-8 and cp1251, by line"


def test_a_stray_byte_or_a_cut_character_does_not_change_the_encoding() -> None:
    text, encoding = text_in((RU * 9).encode() + b"\x92s" + RU.encode()[:-3])
    assert encoding.name == "utf-8"
    assert encoding.broken
    assert text.startswith(RU * 9 + "’s")
    assert "\ufffd" not in text
    data = bytearray(((ZH + "\n") * 400).encode("gbk"))
    data[1000:1001] = b"\xff"
    text, encoding = text_in(bytes(data))
    assert (encoding.name, text.count(ZH)) == ("gb18030", 399)


def test_bytes_that_lost_their_places_are_not_taken_for_another_encoding() -> None:
    data = bytearray((ZH * 400).encode("gbk"))
    data[1000:1001] = b"\xff"  # all after it is read from the second byte of each character, if as GBK
    with pytest.raises(UnknownEncoding):
        text_in(bytes(data))


@pytest.mark.parametrize("data", [bytes(range(1, 256)) * 4, b"\x7fELF\0\1\2\3" * 99, b"text\0text", bytes(99)])
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(Binary):
        text_in(data)


def test_what_no_encoding_fits_is_refused() -> None:
    with pytest.raises(UnknownEncoding, match="neither UTF-8 nor surely"):
        text_in(bytes(b for n in range(400) for b in (0x41 + n % 26, 0x80 + n * 37 % 128, 0x61 + n % 26)))
    assert issubclass(UnknownEncoding, NotText)
