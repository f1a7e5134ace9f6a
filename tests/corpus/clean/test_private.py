"""Personal data: what is masked, what looks like it and is not, and that masking ends."""

import random
import time
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmforge.corpus.clean.private import MASKS, is_card_number, mask_private

ALL = tuple(MASKS)


def masked(text: str) -> tuple[str, dict[str, int]]:
    notices: Counter[str] = Counter()
    return mask_private(text, ALL, notices), dict(notices)


@pytest.mark.parametrize(
    ("text", "kind", "result"),
    [
        ("Write to jane.doe+news@mail.example.co.uk.", "email", "Write to [email]."), ("<a_b@c.org>", "email", (
            "<[email]>"
        )),
        ("from 8.8.8.8, then", "ip", "from [ip address], then"), ("2001:4860:4860::8888 answers", "ip", (
            "[ip address] answers"
        )),
        ("card 4111 1111 1111 1111 on file", "card", "card [card number] on file"), ("5500-0000-0000-0004", "card", (
            "[card number]"
        )),
        ("378282246310005 is Amex", "card", "[card number] is Amex"), ("Call (555) 123-4567 now", "phone", (
            "Call [phone number] now"
        )),
        ("Call 555-123-4567.", "phone", "Call [phone number]."), ("or 1-800-555-0199", "phone", "or [phone number]"),
        ("dial +49 30 1234567 or", "phone", "dial [phone number] or"), ("+1 (415) 555-2671", "phone", "[phone number]"),
        ("555.123.4567", "phone", "[phone number]"),
    ],
)  # fmt: skip
def test_what_is_masked(text: str, kind: str, result: str) -> None:
    assert masked(text) == (result, {f"masked: {kind}": 1})


@pytest.mark.parametrize(
    "text",
    [
        "@property",
        "user@host",
        "a@b.c",
        "git@github.com:forge/anvil.git",
        "me at home dot org",
        "version 1.2.3.4.5",
        "10.0.0.1 and 192.168.1.1 and 127.0.0.1 and 0.0.0.0",
        "999.999.999.999",
        "12:30:45",
        "std::vector",
        "::1",
        "fe80::1",
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "1234567890123456",
        "in 1914-1918",
        "Version 4.6.1.2 replaces version 4.6.1.1",
        "v12.0.255.1",
        "版本4.6.1.2已发布",
        "see section 140.33.2.1",
        "4.3.2.1 Scope of the act",
        "nginx/1.2.3.4",
        "use A::B and dead::beef",
        "order 4539578763621486 was sent",
        "row 1 2 3 4111 1111 1111 1111 5 6",
        "3.14159265358979",
        "isbn 978-3-16-148410-0",
        "2020-01-02",
        "5551234567",
        "1,234,567",
        "pi is 3.141-592-6535x",
        "+5",
        "a+b",
        "x1.2.3.4y",
        "the year 2001",
        "",
    ],
)
def test_what_is_not(text: str) -> None:
    assert masked(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("请发邮件至wang@post.example联系我们。", "请发邮件至[email]联系我们。"),
        ("連絡先はsato@post.exampleです。", "連絡先は[email]です。"),
        ("連絡先：sato＠post.example。", "連絡先：[email]。"),
        ("ติดต่อab@c.coที่นี่", "ติดต่อ[email]ที่นี่"),
        ("문의: kim@a.kr로", "문의: [email]로"),
        ("Пишите на ivan@почта.рф сегодня.", "Пишите на [email] сегодня."),
        ("müller@web.de schreibt", "[email] schreibt"),
        ("IP地址81.2.69.160。", "IP地址[ip address]。"),
        ("http://81.2.69.160/x", "http://[ip address]/x"),
        ("カード4111 1111 1111 1111です", "カード[card number]です"),
    ],
)
def test_signs_without_spaces_part_what_is_masked(text: str, result: str) -> None:
    assert masked(text)[0] == result


def test_numbers_of_sixteen_digits_are_no_cards() -> None:
    rng = random.Random(1)
    numbers = ["".join(rng.choices("0123456789", k=16)) for _ in range(2000)]
    assert masked("\n".join(f"order {number} was sent" for number in numbers))[1].get("masked: card", 0) == 0


def test_only_the_kinds_asked_for() -> None:
    text = "a.b@c.org, 8.8.8.8, 555-123-4567"
    assert mask_private(text, ("ip",)) == "a.b@c.org, [ip address], 555-123-4567"
    assert mask_private(text, ()) == text


@given(st.text(st.sampled_from("0123456789")), st.integers(0, 9))
def test_one_digit_changed_fails_the_checksum(digits: str, change: int) -> None:
    number = "4111111111111111"
    place = len(digits) % 16
    altered = number[:place] + str(change) + number[place + 1 :]
    assert is_card_number(altered) == (altered == number)
    is_card_number(digits or "4")


@given(
    st.lists(
        st.sampled_from(
            [
                "a@b.co",
                "8.8.8.8",
                "4111111111111111",
                "555-123-4567",
                "+49 30 12345",
                " ",
                "-",
                ".",
                "1",
                "x",
                "::",
                "2001:db8",
                "@",
            ]
        )
    )
)
@example(["1", "::", "4111111111111111"])
@settings(max_examples=300, deadline=None)
def test_masking_twice_is_masking_once(pieces: list[str]) -> None:
    once = mask_private("".join(pieces), ALL)
    assert mask_private(once, ALL) == once


@pytest.mark.parametrize(
    "unit", ["1", "1.", "+1", "1-", "(1", "a@", "@", ":", "a:", "1 ", "a.", "+1111111111111111111x", "a-", "4111 "]
)
def test_masking_is_linear(unit: str) -> None:
    start = time.perf_counter()
    mask_private(unit * (300_000 // len(unit)) + "@1.1.1:a:111", ALL)
    assert time.perf_counter() - start < 3
