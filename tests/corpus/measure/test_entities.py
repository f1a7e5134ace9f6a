"""Names are found, bounded and typed; the recogniser learns names that are not among its seeds from what stands around
them."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.measure import gazetteer
from lmforge.corpus.measure.entities import Recogniser, entity_figures

PEOPLE = ["Zorbla", "Quentis", "Mirabax", "Tolvane", "Ostrivar", "Brelldon"]
TOWNS = ["Vexholm", "Karamund", "Ustergrad", "Pellinow", "Drossby", "Hallencia"]
FIRMS = ["Norvatek", "Ilmaron", "Qualdex", "Bristocore", "Fenwurth", "Zanthos"]


def corpus() -> list[str]:
    """Sentences in which unknown names stand where known ones of their type stand too."""
    rng = random.Random(0)
    people = PEOPLE + rng.sample(sorted(gazetteer.FIRST_NAMES), 20)
    towns = [*TOWNS, "London", "Paris", "Berlin", "Moscow", "Tokyo", "Boston", "Chicago", "Vienna"]
    firms = [*FIRMS, "Microsoft", "Google", "Intel", "Sony", "Toyota", "Reuters"]
    patterns = [
        lambda: f"Yesterday {rng.choice(people)} told his wife that he would stay.",
        lambda: f"We heard that {rng.choice(people)} smiled and said nothing.",
        lambda: f"They have lived in {rng.choice(towns)} for years.",
        lambda: f"The train from {rng.choice(towns)} arrived late.",
        lambda: f"The shares of {rng.choice(firms)} fell after the report.",
        lambda: f"He works for {rng.choice(firms)} as an engineer.",
    ]
    return [" ".join(rng.choice(patterns)() for _ in range(12)) for _ in range(200)]


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser.learn(corpus())


def names_in(recogniser: Recogniser, text: str) -> list[tuple[str, str]]:
    return [(mention.name, mention.type) for mention in recogniser.mentions(text)]


@pytest.mark.parametrize(("names", "kind"), [(PEOPLE, "person"), (TOWNS, "place"), (FIRMS, "organisation")])
def test_unknown_names_are_typed_by_their_contexts(recogniser: Recogniser, names: list[str], kind: str) -> None:
    typed = [names_in(recogniser, f"It was clear that {name} had changed.") for name in names]
    assert sum(one == [(name, kind)] for one, name in zip(typed, names, strict=True)) >= 5


def test_titles_heads_and_connectors(recogniser: Recogniser) -> None:
    text = (
        "Then Mr. Brownlow met Dr. J. H. Watson at the University of Nowhere near Copper River, and the Bank of "
        "England sent Sir Hugo's man."
    )
    assert names_in(recogniser, text) == [
        ("Brownlow", "person"),
        ("J. H. Watson", "person"),
        ("University of Nowhere", "organisation"),
        ("Copper River", "place"),
        ("Bank of England", "organisation"),
        ("Hugo", "person"),
    ]


def test_a_capital_at_the_beginning_of_a_sentence_is_no_name(recogniser: Recogniser) -> None:
    assert names_in(recogniser, "Nothing happened. However, the shares fell. The report was late. I was there.") == []
    assert names_in(recogniser, "Vexholm is far away. Yesterday it rained in Vexholm.") == [("Vexholm", "place")] * 2
    assert names_in(recogniser, "THE REPORT OF THE YEAR\nA Heading With Many Capitals\nthe rest") == []


@pytest.mark.parametrize(
    "date",
    [
        "12 March 1914",
        "March 12, 1914",
        "the 3rd of May",
        "May 1987",
        "1066",
        "2004-07-21",
        ("12/03/2004"),
        "the 1990s",
        "the 19th century",
        "Dec. 5",
    ],
)
def test_dates(recogniser: Recogniser, date: str) -> None:
    assert names_in(recogniser, f"they left on {date} and came back") == [(date.removeprefix("the "), "date")]


@pytest.mark.parametrize(
    "text", ["costs 1,914 dollars", "may 5 people", "in 3.1415", "version 1.1999.2", "room 12", "March to the sea"]
)
def test_what_is_no_date(recogniser: Recogniser, text: str) -> None:
    assert names_in(recogniser, text) == []


@given(st.text(alphabet=st.sampled_from("Aab .,'’&-\nMr12019/éß👍\u200b"), max_size=80))
@settings(deadline=None, max_examples=60)
def test_mentions_lie_in_the_text_in_order(text: str) -> None:
    mentions = Recogniser.learn([text]).mentions(text)
    for mention in mentions:
        assert text[mention.start : mention.stop] == mention.name
        assert mention.name.strip() == mention.name != ""
    assert all(one.stop <= other.start for one, other in itertools.pairwise(mentions))


def test_figures_count_distinct_names() -> None:
    figures = entity_figures(corpus())
    assert figures["place"]["distinct"] == pytest.approx(14, abs=1)
    assert figures["person"]["distinct"] == pytest.approx(26, abs=2)
    assert figures["place"]["at_least"] >= figures["place"]["distinct"]
    assert figures["place"]["top"][0][1] >= figures["place"]["top"][-1][1]
    assert entity_figures([])["person"]["distinct"] == 0


def test_a_contraction_is_no_name(recogniser: Recogniser) -> None:
    assert names_in(recogniser, "and then I’m told that I'll go, and It's late, and They'd left") == []
