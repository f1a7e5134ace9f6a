"""Functions found, completions cut and judged, on examples made by hand."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmforge.evaluate.task import Context
from lmforge.evaluate.tasks import code
from lmforge.evaluate.tasks.code import (
    Item,
    complete,
    cut,
    find_items,
    function_end,
    longest_prefix_passes,
    passes,
    prompt_tokens,
)
from lmforge.intervals import wilson
from lmforge.tokens.bpe import Tokenizer
from tests.evaluate.conftest import CONTEXT, score_of, tiny_model

FILE = textwrap.dedent('''\
    """A module."""
    import os


    @decorated(
        by="something")
    def top(a, b):
        """Say what
        it does."""
        if a:
            return b
        return a


    class Thing:
        async def method(self, x):
            total = (x +
                     1)
            # a remark
            def inner():
                y = 1
                y = 2
                y = 3
                return y
            return inner

        def short(self):
            a = 1
            return a

        def one(self): return 1; x = 2; y = 3

    if os.name:
        def under(x):
            """One."""
            x = """
    text at the margin
    """
            x += 1
            return x
    ''')


def items_of(text: str) -> dict[str, Item]:
    return {item.id.rsplit(":", 1)[1]: item for item in find_items([{"id": "f.py", "text": text}])}


def item(head: str = 'def f(x):\n    """Do."""', indent: str = "", rest: str = "\n    return x\n") -> Item:
    return Item("f", "", head, rest, indent, indent + "    ")


def test_functions_and_methods_long_enough_are_found() -> None:
    found = items_of(FILE)
    assert set(found) == {"top", "method", "under"}  # neither the inner function nor those that are too short
    for each in found.values():
        assert each.before + each.head + each.rest in FILE + "\n"
        assert each.rest.startswith("\n")
        assert passes(each, each.rest)
    assert found["top"].head == '@decorated(\n    by="something")\ndef top(a, b):\n    """Say what\n    it does."""'
    assert found["method"].head.endswith("1)")
    assert (found["method"].indent, found["method"].margin) == ("    ", "        ")


@pytest.mark.parametrize(
    "text",
    [
        "def f(:\n  broken",
        "In English, def is a word.\ndef ",
        "x = 1\n",
        "def f():\n    '\0'\n",
        "",
        "(" * 5000 + "\ndef f(): 1",
    ],
)
def test_what_is_not_python_has_no_items(text: str) -> None:
    assert items_of(text) == {}


def test_odd_line_ends_and_escapes() -> None:
    body = "def f(x):\r\n    '\\d \x0c \u2028 odd'\r\n    a = 1\r\n    b = 2\r\n    return a\r\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = items_of(f"x = 1 \x0c\n{body}").values()
    assert found.head.startswith("def f(x):\n")
    assert passes(found, found.rest)


@pytest.mark.parametrize(
    "completion",
    [
        "\n    return x",
        "\n\n    # a remark\n    return x\n",
        "\n    if x:\n        pass\n    else:\n        return (1,\n2)",
        '\n    x = """\nmargin\n"""',
        "\n    def g():\n        return 1",
        "\n    ...",
        "; y = 1",
    ],
)
def test_good_completions(completion: str) -> None:
    assert passes(item(), completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "\n",
        "\n    # only a remark",
        "\n    return (",
        "\n    if x:",
        "\n  return x",
        "\n        return x",
        "\nreturn x",
        "\n    return x\ny = 1",
        "\n    x = '",
        "\n    while True\n        pass",
        "\n    return x return",
        "\n\treturn x\n    return x",
        " + 1",
        "\n    print 'x'",
        "\n    \0",
    ],
)
def test_bad_completions(completion: str) -> None:
    assert not passes(item(), completion)


def test_a_method_is_judged_out_of_its_place() -> None:
    method = item('    def f(self):\n        """Do."""', indent="    ")
    assert passes(method, "\n        return self\n")
    assert not passes(method, "\n    return self\n")
    assert not passes(method, "\n        return self\n\n    def g(self):\n        pass\n")
    assert (
        cut(method, "\n        return self\n\n    def g(self):\n        pass\n", finished=False)
        == "\n        return self"
    )
    assert cut(method, "\n        return self\n\nclass Other:\n    pass\n", finished=True) == "\n        return self"


@pytest.mark.parametrize(
    ("completion", "kept", "kept_if_finished"),
    [
        ("\n    x = 1\n    return x\n\n\ndef g():\n    retu", "\n    x = 1\n    return x", "\n    x = 1\n    return x"),
        ("\n    x = 1\n    retur", "\n    x = 1", "\n    x = 1\n    retur"),
        ("\n    x = 1\n", "\n    x = 1", "\n    x = 1\n"),
        ("\n    x = (1,\n2)\n    return x\n", "\n    x = (1,\n2)\n    return x", "\n    x = (1,\n2)\n    return x\n"),
        ("\n    x = [\n]\nclass", "\n    x = [\n]", "\n    x = [\n]"),
        (
            '\n    x = """\ntext\n"""\n    y = 1\nz',
            '\n    x = """\ntext\n"""\n    y = 1',
            '\n    x = """\ntext\n"""\n    y = 1',
        ),
        (
            "\n    x = 1\n# remark at the margin\n    y = 2\nz = '",
            "\n    x = 1\n# remark at the margin\n    y = 2",
            "\n    x = 1\n# remark at the margin\n    y = 2",
        ),
        ("\n    return x", "", "\n    return x"),
        (" # goes on", " # goes on", " # goes on"),
        ("", "", ""),
    ],
)
def test_cut_where_the_function_ends(completion: str, kept: str, kept_if_finished: str) -> None:
    assert cut(item(), completion, finished=False) == kept
    assert cut(item(), completion, finished=True) == kept_if_finished


def test_end_is_seen_by_pythons_own_tokens() -> None:
    assert function_end("def f():\n    a\n\n    b\n\nc = '''") == 4
    assert function_end("@d(\n1)\ndef f():\n    a\n$") == 4
    assert function_end("def f():\n    a\n    b") is None
    assert function_end("def f():\n    a = (\n\nb") is None
    assert function_end("def f():\n    a\n  b\nc") is None


def test_the_longest_prefix_forgives_the_limit() -> None:
    text = "\n    x = 1\n    if x:"
    assert not passes(item(), text)
    assert longest_prefix_passes(item(), text)
    assert not longest_prefix_passes(item(), "\n    if x:\n    y = 1")


def test_the_prompt_leaves_the_line_end_to_the_model(base: Any, context_of: Callable[..., Context]) -> None:
    tokenizer = Tokenizer.load(base / "tokens" / "tokenizer.json")
    top = items_of(FILE)["top"]
    tokens = prompt_tokens(top, tokenizer, 1000)
    assert tokens[0] == tokenizer.end_of_text
    assert tokenizer.decode(tokens) == top.before + top.head
    assert not tokenizer.decode(tokens).endswith("\n")
    assert prompt_tokens(top, tokenizer, 10) == tokens[-10:]


def test_completions_are_those_of_the_loop_whatever_the_batch() -> None:
    model = tiny_model(8)
    prompts = [[0, 5, 9, 17], [0, 44], [0, *range(30, 45)]]
    together = complete(model, prompts, 12, (0,))
    assert together == [complete(model, [prompt], 12, (0,))[0] for prompt in prompts]
    for tokens, finished in together:
        assert 0 not in tokens
        assert len(tokens) == 12 or finished


class Parrot:
    """Stands for the network: writes what stood in the file."""

    def __init__(self, tokenizer: Tokenizer, items: list[Item]) -> None:
        self.of = {tuple(prompt_tokens(each, tokenizer, CONTEXT // 2)): tokenizer.encode(each.rest) for each in items}

    def __call__(
        self, _model: Any, prompts: list[list[int]], new: int, _stop: tuple[int, ...] = ()
    ) -> list[tuple[list[int], bool]]:
        return [(self.of[tuple(prompt)][:new], len(self.of[tuple(prompt)]) <= new) for prompt in prompts]


def test_the_task_on_the_files_own_code(context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    from lmforge.corpus.build import read_documents

    context = context_of(tiny_model(), "evaluate.items=10")
    items = list(find_items(read_documents(context.corpus_dir, "test")))
    monkeypatch.setattr(code, "complete", Parrot(context.tokenizer, items))
    score = score_of("completions_parse", context, new_tokens=1000)  # the limit is then half the context
    assert score.items == 10 < score.extra["functions_found"] == len(items)
    assert score.value == score.extra["baselines"]["reference"]
    assert (score.extra["baselines"]["empty"], score.extra["baselines"]["pass_statement"]) == (0, 1)
    assert (score.low, score.high) == wilson(score.extra["passed"], 10)
    assert score.extra["longest_prefix"] >= score.value  # type: ignore[operator]
    assert all(row["passed"] == row["reference"] for row in score.rows)


def test_the_task_on_an_untrained_model(context_of: Callable[..., Context]) -> None:
    context = context_of(tiny_model(), "evaluate.items=3")
    score = score_of("completions_parse", context)
    assert score.items == len(score.rows) == 3
    again = score_of("completions_parse", context_of(tiny_model(), "evaluate.items=2"))
    assert score.rows[:2] == again.rows  # fewer items are a part of more
    for row in score.rows:
        assert row["written"].startswith(row["completion"])


def test_no_python_is_no_error(context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "read_documents", lambda *_: iter([{"id": "a", "text": "Only words here."}]))
    score = score_of("completions_parse", context_of(tiny_model()))
    assert (score.value, score.low, score.high, score.items) == (None, None, None, 0)
    assert "no Python function" in str(score.not_applicable)


def test_real_python_survives() -> None:
    text = Path(ast.__file__).read_text(encoding="utf-8")
    found = items_of(text)
    assert len(found) > 30
    assert all(each.before + each.head + each.rest.rstrip("\n") in text for each in found.values())
