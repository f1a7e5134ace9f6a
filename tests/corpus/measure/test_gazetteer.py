"""Seeds that contradict each other would teach the recogniser nonsense."""

import itertools

from lmforge.corpus.measure import gazetteer


def test_no_seed_is_of_two_types() -> None:
    lists = {"place": gazetteer.PLACES, "organisation": gazetteer.ORGANISATIONS, "other": gazetteer.OTHERS}
    for (one, names), (other, others) in itertools.combinations(lists.items(), 2):
        assert not names & others, f"both {one} and {other}"
    assert not gazetteer.PLACE_HEADS & gazetteer.ORGANISATION_HEADS


def test_every_name_begins_with_a_capital_and_small_words_do_not() -> None:
    for names in (
        gazetteer.PLACES,
        gazetteer.ORGANISATIONS,
        gazetteer.OTHERS,
        gazetteer.FIRST_NAMES,
        gazetteer.TITLES,
        gazetteer.MONTHS,
    ):
        assert len(names) > 10
        assert all(name[0].isupper() for name in names)
    assert all(word.islower() for word in gazetteer.SMALL_WORDS)
