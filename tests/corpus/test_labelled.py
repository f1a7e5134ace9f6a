"""Examples of every task, in the forms that they are found in; what is no example is refused with its line."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.build import read_documents
from lmforge.corpus.labelled import NO_ANSWER, Example, build_examples, read_examples
from lmforge.errors import InputError
from lmforge.recipe import Finetune, Recipe


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(task: str, **keys: Any) -> Finetune:
    return Finetune.model_validate({"base": "base", "task": task, "train": "train.jsonl", **keys})


def read(tmp_path: Path, made: Finetune, *lines: Any) -> list[Example]:
    return list(read_examples(made, written(tmp_path / "e.jsonl", *lines)))


def words(example: Example) -> list[str]:
    return [message["content"] for message in example.messages]


def recipe(tmp_path: Path, context: int = 100, holdout: float = 0.2, **keys: Any) -> Recipe:
    given = {"base": "base", "task": "classify", "train": str(tmp_path / "train.jsonl"), **keys}
    return Recipe.model_validate(
        {"tokens": {"context": context}, "corpus": {"sources": [], "holdout": holdout}, "finetune": given}
    )


def length(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def test_a_text_and_a_pair(tmp_path: Path) -> None:
    (one,) = read(
        tmp_path, settings("classify", labels={"0": "bad", "1": "good"}), {"text": "so so", "label": 1, "idx": 9}
    )
    assert words(one) == ["so so", "good"]
    assert one.where == f"{tmp_path / 'e.jsonl'}:1"
    pair = settings("classify", fields=["premise", "hypothesis"], label="gold", instruction="Does it follow?")
    (two,) = read(tmp_path, pair, {"premise": "It rains.", "hypothesis": "It is wet.", "gold": "yes"})
    assert words(two) == ["Does it follow?\npremise: It rains.\nhypothesis: It is wet.", "yes"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"answers": {"text": ["1066", "in 1066", "1066"], "answer_start": [3, 0, 3]}}, ("1066", "in 1066")),
        ({"answer": "1066"}, ("1066",)),
        ({"answers": ["1066"]}, ("1066",)),
        ({"answers": [{"text": "1066", "answer_start": 3}]}, ("1066",)),
        ({"answers": []}, (NO_ANSWER,)),
        ({"answers": ["1066"], "is_impossible": True}, (NO_ANSWER,)),
    ],
)
def test_answers_in_every_form(tmp_path: Path, answers: dict[str, Any], expected: tuple[str, ...]) -> None:
    (example,) = read(tmp_path, settings("span"), {"question": "When?", "context": "in 1066", **answers})
    assert example.answers == expected
    assert words(example) == ["Question: When?\nContext: in 1066", expected[0]]


def test_articles_and_the_official_file(tmp_path: Path) -> None:
    asked = [{"question": f"{n}?", "answers": [{"text": "b", "answer_start": 2}], "id": n} for n in range(3)]
    article = {"title": "t", "paragraphs": [{"context": "a b c", "qas": asked}, {"context": "b", "qas": asked[:1]}]}
    for line, count in ((article, 4), ({"version": "v2.0", "data": [article, article]}, 8)):
        assert len(read(tmp_path, settings("span"), line)) == count


def test_conversations_end_with_the_assistant(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    (example,) = read(tmp_path, settings("chat", instruction="Be brief."), {"messages": turns})
    assert [message["role"] for message in example.messages] == ["system", "user", "assistant"]
    assert words(example) == ["Be brief.", "Hi", "Hello"]


def test_answers_of_weight_0_are_read_and_not_learned(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "No", "weight": 0}
    asked, right = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    turns = [asked, said, asked, right | {"weight": 1}, asked, said]
    (example,) = read(tmp_path, settings("chat"), {"messages": turns})
    assert example.messages == [asked, said, asked, right]
    (plain,) = read(tmp_path, settings("chat"), {"messages": [asked, said | {"weight": 1}, asked, right]})
    assert plain.key == example.key  # the same question: one split
    with pytest.raises(InputError, match="that is learned"):
        read(tmp_path, settings("chat"), {"messages": [asked, said]})


@pytest.mark.parametrize(
    ("made", "line", "message"),
    [
        (
            settings("classify"),
            {"txet": "a", "label": 1},
            "e.jsonl:2: no field 'text' (it has txet, label); did you mean 'txet'? set finetune.f",
        ),
        (
            settings("classify"),
            {"text": "a", "lable": 1},
            "e.jsonl:2: no field 'label' (it has text, lable); did you mean 'lable'? set finet",
        ),
        (settings("classify"), {"text": " ", "label": 1}, "e.jsonl:2: field 'text' is empty"),
        (settings("classify"), {"text": 3, "label": 1}, "e.jsonl:2: field 'text' is a int, not a string"),
        (settings("classify"), {"text": "a", "label": [1]}, "e.jsonl:2: label [1] is a list; give strings, numbers"),
        (settings("classify"), {"text": "a", "label": ""}, "e.jsonl:2: the label is empty"),
        (settings("classify"), {"text": "a", "label": " "}, "e.jsonl:2: the label is empty"),
        (settings("classify"), {"text": "a", "label": None}, "e.jsonl:2: field 'label' is null"),
        (
            settings("classify", labels={"1": "good"}),
            {"text": "a", "label": 2},
            "e.jsonl:2: label '2' is not in finetune.labels (1)",
        ),
        (settings("classify"), [1], "e.jsonl:2: a list, not an object"),
        (
            settings("span"),
            {"question": "a", "context": "b"},
            "e.jsonl:2: no field 'answers' (it has question, context)",
        ),
        (
            settings("span"),
            {"question": "a", "context": "b", "answers": ["c"]},
            "e.jsonl:2: the answer 'c' does not stand in the context",
        ),
        (settings("span"), {"question": "a", "context": "b", "answers": [3]}, "e.jsonl:2: answers are not texts"),
        (settings("chat"), {"message": []}, "e.jsonl:2: no field 'messages' (it has message); did you mean 'message'?"),
        (settings("chat"), {"messages": [{"role": "user"}]}, "e.jsonl:2: messages[0] is no message"),
        (
            settings("chat"),
            {"messages": [{"role": "user", "content": "a"}]},
            "e.jsonl:2: messages hold no answer of the assistant",
        ),
        (
            settings("chat"),
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
            "e.jsonl:2: messages[1], the assistant's answer, is empty",
        ),
        (
            settings("span"),
            {"question": "a", "context": "b c", "answers": [" "]},
            "e.jsonl:2: answers are not texts",
        ),
    ],
)
def test_what_is_no_example(tmp_path: Path, made: Finetune, line: Any, message: str) -> None:
    good = {
        "classify": {"text": "a", "label": 1},
        "span": {"question": "a", "context": "b", "answers": []},
        "chat": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    }[made.task]
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path, made, good, line)


def test_broken_lines_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')
    with pytest.raises(InputError, match=r"e\.jsonl:2: not valid JSON"):
        list(read_examples(settings("classify"), tmp_path / "e.jsonl"))
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"e\.jsonl: no examples in it"):
        list(read_examples(settings("classify"), tmp_path / "e.jsonl"))


def test_splits_figures_and_documents(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", *({"text": f"number {n}", "label": n % 3} for n in range(300)))
    figures = build_examples(recipe(tmp_path), tmp_path / "corpus", length)
    assert {"documents_in", "documents_out", "dropped", "bytes_out", "words", "entropy"} <= set(figures)
    assert sum(size["documents"] for size in figures["splits"].values()) == figures["documents_out"] == 300
    assert 15 <= figures["splits"]["valid"]["documents"] <= 45
    assert 15 <= figures["splits"]["test"]["documents"] <= 45
    trained = figures["examples"].pop("trained")
    assert sum(trained.values()) == figures["splits"]["train"]["documents"]
    assert figures["examples"] == {
        "task": "classify",
        "labels": {"0": 100, "1": 100, "2": 100},
        "longest": 3,
        "too_long": [],
    }
    documents = list(read_documents(tmp_path / "corpus", "test"))
    assert all(document["meta"]["messages"][-1]["content"] == document["meta"]["answers"][0] for document in documents)
    assert len({document["id"] for document in documents}) == len(documents)
    figures["examples"]["trained"] = trained
    assert json.loads((tmp_path / "corpus" / "statistics.json").read_text()) == figures


def test_questions_of_the_test_are_not_learned(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", *({"text": f"number {n}", "label": n % 2} for n in range(100)))
    written(tmp_path / "test.jsonl", *({"text": f"number {n}", "label": n % 2} for n in range(90, 110)))
    figures = build_examples(recipe(tmp_path, test=str(tmp_path / "test.jsonl")), tmp_path / "corpus", length)
    assert figures["dropped"] == {"in_test": 10}
    assert figures["splits"]["test"]["documents"] == 20
    assert figures["splits"]["valid"]["documents"] >= 5
    written(tmp_path / "test.jsonl", {"text": "other", "label": 7})
    with pytest.raises(InputError, match=r"test\.jsonl:1: label '7' is none of the 2 of finetune\.train \(0, 1\)"):
        build_examples(recipe(tmp_path, test=str(tmp_path / "test.jsonl")), tmp_path / "corpus", length)


def test_examples_that_are_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(
        tmp_path / "train.jsonl",
        *({"text": f"number {n}", "label": n % 2} for n in range(100)),
        {"text": "a b c d e f g h", "label": 0},
    )
    with pytest.raises(
        InputError, match=r"train\.jsonl:101: 9 tokens, more than tokens\.context = 8; .*finetune\.long = 'skip'"
    ):
        build_examples(recipe(tmp_path, 8), tmp_path / "corpus", length)
    assert not (tmp_path / "corpus").exists()
    figures = build_examples(recipe(tmp_path, 8, long="skip"), tmp_path / "corpus", length)
    assert figures["dropped"] == {"too_long": 1}
    assert figures["examples"]["too_long"] == [f"{tmp_path / 'train.jsonl'}:101"]
    assert "are left out whole: " in (told := capsys.readouterr().err)
    assert "train.jsonl:101" in told


@given(st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e6, 1e6).filter(lambda x: x == round(x, 3)))
def test_a_label_is_named_as_the_data_writes_it(label: Any) -> None:
    line = json.dumps({"text": "a", "label": label})
    written = line.removeprefix('{"text": "a", "label": ').removesuffix("}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.jsonl"
        path.write_text(line)
        (example,) = read_examples(settings("classify"), path)
        assert json.loads(example.answers[0]) == label
        if isinstance(label, bool | int):
            assert example.answers == (written,)
        (mapped,) = read_examples(settings("classify", labels={example.answers[0]: "yes"}), path)
        assert mapped.answers == ("yes",)


def test_an_empty_word_for_a_label_is_refused() -> None:
    with pytest.raises(ValueError, match="'1' becomes an empty word"):
        settings("classify", labels={"1": " "})


def test_too_few_examples(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", {"text": "a", "label": 1})
    with pytest.raises(InputError, match=r"finetune\.train: 1 examples are left, and none of them for the \w+ split"):
        build_examples(recipe(tmp_path), tmp_path / "corpus", length)
