"""Each form is told by its lines; prose and what a menu holds are none of them."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.clean.filters import prepare
from lmforge.corpus.clean.forms import Form, form_of, removable_lines
from lmforge.corpus.clean.quality import RULES
from lmforge.errors import InputError
from lmforge.recipe import Corpus, parse_recipe
from lmforge.recipe.corpus import Rule
from tests.corpus.clean.test_filters import ARTICLE, document

HAIKU = "An old silent pond,\na frog jumps into the pond —\nsplash! Silence again."
FORMS = {
    "verse": HAIKU,
    "sums": "\n".join(f"{n} + {n * 7} = {n * 8}" for n in range(12, 20)),
    "table": "day,wheat,rye\n" + "\n".join(f"{n},{n * 3.5},{n + 7}" for n in range(20)),
    "latex": r"\begin{tabular}{rr}" + "\n1 & 2 \\\\\n3 & 4 \\\\\n" + r"\end{tabular} \label{a} \cite{b}",
    "log": "\n".join(f"2024-05-0{n} 12:00:0{n} INFO job {n} done" for n in range(1, 9)),
    "code": "#include <stdio.h>\nint main(void) {\n    int a = 1;\n    return a;\n}\n",
    "mail": "From: a\nTo: b\nSubject: The mill\n\nThe wheel stands still since noon, so come and look.\n",
    "dialogue": "Anna: Where is it?\nTom: Over there.\nAnna: I do not see it.\nTom: Look again.\n",
    "faq": "What is flour?\nGround corn.\nWho grinds it?\nThe miller does.\nWhy so early?\nThe brook is full.",
    "recipe": "Bread\n500 g flour\n300 ml water\n10 g salt\nKnead it and wait.\nBake it.",
    "technical": "# tool\n\nIt grinds.\n\n## Install\n\n```\npip install tool\n```\n",
    "prompt": "### Instruction:\nName a mill.\n### Response:\nThe old one.",
}
MENU = "\n".join(["Home", "About Us", "Contact", "Products", "Services", "Log In", "Shop All", "New Arrivals"])


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_told(form: str) -> None:
    assert form_of(FORMS[form]) == form


@pytest.mark.parametrize("text", [ARTICLE, MENU, "", "x", "words " * 200, "0123456789 +-*/ 42 " * 10])
def test_prose_and_waste_have_none(text: str) -> None:
    assert form_of(text) == "prose"


@pytest.mark.parametrize("genre", ["unknown", "web", "books", "news"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_are_kept_in_every_genre(form: str, genre: str) -> None:
    assert prepare(document(FORMS[form], genre), Corpus())[1] is None


@given(st.text())
def test_any_text_has_a_form(text: str) -> None:
    assert form_of(text) in get_args(Form)


def test_each_rule_can_be_turned_off() -> None:
    assert {*Rule.__args__} >= {rule.reason for rule in RULES} | {"gopher_stop_words", "c4_lorem_ipsum"}
    reason = prepare(document(ARTICLE + "{"), Corpus())[1]
    assert reason == "c4_curly_bracket"
    assert prepare(document(ARTICLE + "{"), Corpus(rules_off=(reason,)))[1] is None
    assert prepare(document("short"), Corpus(rules_off=("too_short",), rules=()))[1] is None
    with pytest.raises(InputError, match="rules_off"):
        parse_recipe({"corpus": {"rules_off": ["no_such_rule"]}})


def test_lines_that_mean_something_where_they_stand_stay() -> None:
    banner = "All rights reserved by the owners of this page."
    text = f"{banner}\nThe mill grinds.\npip install the-whole-mill-and-more\nIt is old."
    assert removable_lines(text, "web", [False] * 4) == [True, True, False, True]
    assert removable_lines(text, "unknown", [False] * 4) == [True, True, False, True]
    assert removable_lines(text, "unknown", [True] * 4) == [False, True, False, True]
    assert removable_lines(text, "technical", [False] * 4) == [False] * 4
    assert removable_lines("Translate this into French, please.\nThe mill grinds.", "unknown", [False] * 2)[0] is False
    assert not any(removable_lines(FORMS["code"], "unknown", [False] * 6))


def test_verse_with_a_name_in_latin_letters_or_one_number_is_verse() -> None:
    for verse in (
        "でも人に接するのはむずかしい、\nTokyoの夜は静かである。\n雨の音だけが聞こえてくる、\n\n古い橋のたもとで待つ。\n春はまだ遠い。",
        "Я помню старый мост и тихий дом,\nгде в 1905 мы пели вечерами.\nИ снег летел за маленьким окном,",
        "Le soir je marche au bord de l'eau,\n12 lanternes dorment sur la rive.\nLe vent se tait et rien ne bouge.",
    ):
        assert form_of(verse) == "verse"
    menu = "Home\nAbout Us\nOur Products\nContact\nTerms Of Use\nLog In 2"
    assert form_of(menu) != "verse"


MORE = {
    "haiku in signs": ("古池や\n蛙飛びこむ\n水の音", "verse"),
    "columns without numbers": (
        "name,colour,place\n" + "\n".join(f"a{w}b,{w},{w}c" for w in ["red", "blue", "grey", "gold", "pink"]),
        "table",
    ),
    "changes": (
        "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n-import os\n+import sys\n the rest of it",
        "code",
    ),
    "numbers in verse": (
        "\n".join(f"im Jahr {n} stand noch der Baum am Fluss" + ",."[n % 2] * (n % 3 > 0) for n in range(1900, 1908)),
        "verse",
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_more_forms_are_kept(name: str) -> None:
    text, form = MORE[name]
    assert form_of(text) == form
    assert prepare(document(text, "web"), Corpus())[1] is None
