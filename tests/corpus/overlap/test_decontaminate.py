"""Benchmark texts are found however they are wrapped, cased, punctuated or embedded; other texts of the same words are
not."""

import gzip
import json
import random
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.overlap.decontaminate import (
    PLANTED,
    Index,
    benchmark_files,
    build_index,
    contamination,
    measure_recall,
    read_benchmarks,
)
from lmforge.corpus.overlap.words import read_words
from lmforge.errors import InputError

WORDS = [
    a + b
    for a in ("ba", "ke", "lim", "no", "rust", "sha", "ter", "vo")
    for b in ("da", "gon", "pel", "s", "ty", "wick", "'re", "-ful")
]
LONG = (
    "A robe takes 2 bolts of well-known blue fiber, and half that much white fiber. How many bolts in total (at $3.50) "
    "does it take?"
)
SHORT = "The mechanical doll wriggled itself loose again."  # 41 letters
SHORTER = "The doll wriggled loose."  # 20 letters


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def benchmark_of(text: str, *texts: str) -> str | None:
    return contamination(read_words(text), build_index({"quiz": texts}))


@pytest.mark.parametrize("text", [LONG, SHORT])
@pytest.mark.parametrize("kind", list(PLANTED))
def test_every_disguise_is_seen_through(text: str, kind: str) -> None:
    rng = random.Random(1)
    carrier = "\n".join(sentence(rng, 9) for _ in range(20))
    for _ in range(20):
        assert benchmark_of(PLANTED[kind][0](text, carrier, rng), text) is not None
    assert benchmark_of(carrier, text) is None


@given(st.integers(0, 9999), st.sampled_from(["", " ", "\n", ", ", "-"]))
@settings(deadline=None)  # compiled at the first call
def test_any_part_of_fifty_letters_from_a_word_on_is_enough(seed: int, mark: str) -> None:
    rng = random.Random(seed)
    words = [word.replace("'", "").replace("-", "") for word in sentence(rng, 40).split()]
    start = rng.randrange(20)
    part = mark.join(words[start : start + 14]) if mark else " ".join(words[start : start + 14]).upper()
    around = sentence(rng, 30)
    assert benchmark_of(f"{around} {part} {around}", " ".join(words)) == "quiz"


def test_fewer_letters_are_not_enough() -> None:
    words = LONG.split()
    assert benchmark_of(" ".join(words[:8]), LONG) is None  # 40 letters
    assert benchmark_of(f"They said: {SHORT[:-7]} and so on and on.", SHORT) is None
    assert benchmark_of("0 " * 200, "0 " * 100) is None  # tells nothing


@pytest.mark.parametrize(
    ("phrase", "rest"),
    [
        ("Столица Российской Федерации", " стоит на реке, которая впадает в Оку. Как называется эта река?"),
        ("भारत के राष्ट्रपति का चुनाव", " संसद के दोनों सदनों के सदस्य करते हैं और उनका कार्यकाल पाँच वर्ष का होता है।"),
        ("中华人民共和国全国人民代表大会常务委员会", "的说法，哪一项是正确的？请从四个选项中选出一个最合适的答案。"),
        ("ประเทศไทยมีเมืองหลวงชื่อ", "กรุงเทพมหานครซึ่งตั้งอยู่บนแม่น้ำเจ้าพระยาและมีประชากรมากที่สุดในประเทศ"),
        ("대한민국의 수도인 서울특별시는", " 한강을 끼고 있으며 인구가 가장 많은 도시이다. 이 도시의 이름은 무엇인가?"),
    ],
)
def test_letters_are_counted_not_bytes(phrase: str, rest: str) -> None:
    assert benchmark_of(f"{phrase}. {phrase}!", phrase + rest) is None
    assert benchmark_of(f"x {phrase}{rest} y", phrase + rest) == "quiz"


def test_a_very_short_text_counts_as_a_line_only() -> None:
    assert benchmark_of(f"Examples:\n  {SHORTER.upper()}\nEnd.", SHORTER) == "short texts"
    assert benchmark_of(SHORTER, SHORTER) == "short texts"
    assert benchmark_of(f"He said that {SHORTER} And then it went away.", SHORTER) is None
    assert benchmark_of("none of these", "None of these.") is None  # under 16 letters: not indexed


def test_the_index_survives_its_file(tmp_path: Path) -> None:
    index = build_index({"b": [LONG], "a": [SHORT, SHORTER, "tiny"]})
    index.save(tmp_path / "index.npz")
    loaded = Index.load(tmp_path / "index.npz")
    assert loaded.names == ("a", "b")
    assert loaded.texts == (1, 1, 1, 1)
    for text, name in (
        (LONG, "b"),
        (SHORT, "short texts"),
        (SHORTER, "short texts"),
        ("something else altogether", None),
    ):
        assert contamination(read_words(text), loaded) == contamination(read_words(text), index) == name


def test_recall_is_measured_on_planted_copies() -> None:
    rng = random.Random(2)
    benchmarks = {"quiz": [sentence(rng, rng.randint(12, 40)).capitalize() + "?" for _ in range(60)]}
    measured = measure_recall(benchmarks, build_index(benchmarks), [sentence(rng, 200) for _ in range(10)])
    assert set(measured) == {"verbatim", "rewrapped", "recased", "repunctuated", "embedded"}
    assert all(each["recall"] == 1 and each["precision"] == 1 and each["items"] == 60 for each in measured.values())
    blind = measure_recall(benchmarks, build_index({}), ["carrier"])
    assert all(each["recall"] == 0 for each in blind.values())


def test_benchmarks_are_read_from_files_folders_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "packs" / "quiz").mkdir(parents=True)
    record = {"question": LONG, "choices": {"text": [SHORTER, "four", string.ascii_letters]}, "n": 4}
    with gzip.open(tmp_path / "packs" / "quiz" / "test.jsonl.gz", "wt") as file:
        file.write(json.dumps(record) + "\n\n")
    (tmp_path / "packs" / "note.txt").write_text(SHORT)
    texts = read_benchmarks([tmp_path / "packs"])
    assert set(texts) == {"quiz/test.jsonl.gz", "note.txt"}
    assert texts["note.txt"] == [SHORT]
    assert texts["quiz/test.jsonl.gz"] == [LONG, string.ascii_letters, f"{LONG} {SHORTER} four {string.ascii_letters}"]
    assert [file.path.name for file in benchmark_files([tmp_path / "packs" / "*" / "test*"])] == ["test.jsonl.gz"]
    with pytest.raises(InputError, match="does not exist"):
        read_benchmarks([tmp_path / "none"])
    (tmp_path / "bad.jsonl").write_text("{}\n{oops\n")
    with pytest.raises(InputError, match=r"bad\.jsonl:2: not valid JSON"):
        read_benchmarks([tmp_path / "bad.jsonl"])


def test_labels_of_an_item_are_no_text_of_it(tmp_path: Path) -> None:
    label = "irregular_plural_subject_verb_agreement_1_of_the_set_and_more"
    record = {
        "text": LONG,
        "uid": label,
        "task_id": "Quiz/3",
        "answer": "小明有3个苹果小红有5个他们一共有几个苹果请用一句话回答这个问题谢谢你们大家",
    }
    (tmp_path / "quiz.jsonl").write_text(json.dumps(record) + "\n")
    texts = read_benchmarks((tmp_path / "quiz.jsonl",))["quiz.jsonl"]
    index = build_index({"quiz": texts})
    assert contamination(read_words(f"see {label} there"), index) is None
    assert contamination(read_words(LONG), index) == contamination(read_words(record["answer"]), index) == "quiz"
